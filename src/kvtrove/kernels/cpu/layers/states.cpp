#include "layers/states.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/half.h"
#include "common/threads.h"
#include "common/vector/silu.h"

#define INLINE [[gnu::always_inline]] inline
// Compiled several times where the loader can choose. Every column has sums of its own, in one order, and products are not
// joined, so the bits are the same; nor do they depend on which tokens share a step.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define KVTROVE_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define KVTROVE_CLONES
#endif

namespace kvtrove {

namespace {

constexpr std::size_t kTile = 64;  // columns of a matrix that are worked on together: 128 rows of them stay in the L1 cache
constexpr std::size_t kLanes = 16;
constexpr std::size_t kWorthAThread = 1 << 14;  // elements before another thread is woken

INLINE float get(const float* p) { return *p; }
INLINE float get(const std::uint16_t* p) { return float_of_bfloat16(*p); }
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(std::uint16_t* p, float x) { *p = bfloat16_of_float(x); }

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * sizeof(std::uint32_t))));

INLINE Lanes load(const float* p) {
    Lanes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float* p, const Lanes& x) { std::memcpy(p, &x, sizeof x); }

// x = x * sigmoid(x), kLanes of them.
INLINE void silu_lanes(float* x) {
    Lanes lanes = load(x);
    silu<Words>(lanes);
    store(x, lanes);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Channels [first, last) of all tokens of a sequence.
template <class T>
INLINE void convolve_channels(const Convolution& c, std::size_t start, std::size_t stop, std::size_t seat,
                              std::size_t first, std::size_t last) {
    const std::size_t past = c.kernel - 1, width = last - first;
    T* state = static_cast<T*>(c.state) + seat * c.seat_stride + first;
    for (std::size_t t = start; t < stop; ++t) {
        const T* x = static_cast<const T*>(c.x) + t * c.stride + first;
        float* y = c.y + t * c.width + first;
        for (std::size_t i = 0; i < width; ++i) y[i] = get(state + i) * c.weight[first + i];
        for (std::size_t j = 1; j < past; ++j) {
            const T* before = state + j * c.width;
            const float* weight = c.weight + j * c.width + first;
            for (std::size_t i = 0; i < width; ++i) y[i] += get(before + i) * weight[i];
        }
        const float* weight = c.weight + past * c.width + first;
        for (std::size_t i = 0; i < width; ++i) y[i] += get(x + i) * weight[i];
        if (c.bias) {
            for (std::size_t i = 0; i < width; ++i) y[i] += c.bias[first + i];
        }
        if (c.silu) {
            for (std::size_t i = 0; i < width; i += kLanes) {
                const std::size_t n = std::min(kLanes, width - i);
                float lanes[kLanes] = {};
                std::memcpy(lanes, y + i, n * sizeof(float));
                silu_lanes(lanes);
                std::memcpy(y + i, lanes, n * sizeof(float));
            }
        }
        for (std::size_t j = 0; j + 1 < past; ++j) {
            std::memcpy(state + j * c.width, state + (j + 1) * c.width, width * sizeof(T));
        }
        std::memcpy(state + (past - 1) * c.width, x, width * sizeof(T));
    }
}

KVTROVE_CLONES void convolve_f32(const Convolution& c, std::size_t start, std::size_t stop, std::size_t seat,
                                 std::size_t first, std::size_t last) {
    convolve_channels<float>(c, start, stop, seat, first, last);
}

KVTROVE_CLONES void convolve_bf16(const Convolution& c, std::size_t start, std::size_t stop, std::size_t seat,
                                  std::size_t first, std::size_t last) {
    convolve_channels<std::uint16_t>(c, start, stop, seat, first, last);
}

// A token's update of kTile columns of a matrix, and what they read. columns: matrix + first column.
INLINE void update_tile(float* columns, std::size_t rows, std::size_t stride, const float* q, const float* k,
                        const float* v, float fade, float beta, float* out) {
    Lanes sums[kTile / kLanes] = {}, wrong[kTile / kLanes];
    for (std::size_t i = 0; i < rows; ++i) {
        const float* row = columns + i * stride;
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kTile / kLanes; ++j) sums[j] += load(row + j * kLanes) * k[i];
    }
#pragma GCC unroll 4
    for (std::size_t j = 0; j < kTile / kLanes; ++j) {
        wrong[j] = (load(v + j * kLanes) - fade * sums[j]) * beta;
        sums[j] = Lanes{};
    }
    for (std::size_t i = 0; i < rows; ++i) {
        float* row = columns + i * stride;
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kTile / kLanes; ++j) {
            const Lanes s = load(row + j * kLanes) * fade + k[i] * wrong[j];
            store(row + j * kLanes, s);
            sums[j] += s * q[i];
        }
    }
#pragma GCC unroll 4
    for (std::size_t j = 0; j < kTile / kLanes; ++j) store(out + j * kLanes, sums[j]);
}

// The same of a single column, in the same order.
INLINE void update_column(float* column, std::size_t rows, std::size_t stride, const float* q, const float* k, float v,
                          float fade, float beta, float* out) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < rows; ++i) sum += column[i * stride] * k[i];
    const float wrong = (v - fade * sum) * beta;
    sum = 0.0f;
    for (std::size_t i = 0; i < rows; ++i) {
        const float s = column[i * stride] * fade + k[i] * wrong;
        column[i * stride] = s;
        sum += s * q[i];
    }
    *out = sum;
}

INLINE float sum_of_squares(const float* x, std::size_t size) {
    Lanes lanes = {};
    std::size_t i = 0;
    for (; i + kLanes <= size; i += kLanes) lanes += load(x + i) * load(x + i);
    float sum = 0.0f;
    for (std::size_t j = 0; j < kLanes; ++j) sum += lanes[j];
    for (; i < size; ++i) sum += x[i] * x[i];
    return sum;
}

INLINE void unit(const float* x, std::size_t size, float eps, float factor, float* y) {
    const float scale = factor / std::sqrt(sum_of_squares(x, size) + eps);
    for (std::size_t i = 0; i < size; ++i) y[i] = x[i] * scale;
}

// One head of all tokens of a sequence. scratch: of each token q, k, factors, what it reads; then columns of the matrix.
template <class T>
INLINE void delta_head(const Delta& d, std::size_t start, std::size_t stop, std::size_t seat, std::size_t head,
                       float* scratch) {
    const std::size_t keys = d.key_heads * d.k_dim, width = 2 * keys + d.value_heads * d.v_dim;
    const std::size_t key_head = head / (d.value_heads / d.key_heads), tokens = stop - start;
    float *qs = scratch, *ks = qs + tokens * d.k_dim, *fades = ks + tokens * d.k_dim, *betas = fades + tokens;
    float *outs = betas + tokens, *tile = outs + tokens * d.v_dim;
    for (std::size_t t = 0; t < tokens; ++t) {
        const float* mixed = d.mixed + (start + t) * width;
        unit(mixed + key_head * d.k_dim, d.k_dim, d.unit_eps, 1.0f / std::sqrt(static_cast<float>(d.k_dim)), qs + t * d.k_dim);
        unit(mixed + keys + key_head * d.k_dim, d.k_dim, d.unit_eps, 1.0f, ks + t * d.k_dim);
        const float x = get(static_cast<const T*>(d.a) + (start + t) * d.stride + head) + d.dt[head];
        const float softplus = x > 20.0f ? x : std::log1p(std::exp(x));
        fades[t] = std::exp(-d.decay[head] * softplus);
        betas[t] = sigmoid(get(static_cast<const T*>(d.b) + (start + t) * d.stride + head));
    }
    float* matrix = d.matrix + seat * d.seat_stride + head * d.k_dim * d.v_dim;
    for (std::size_t first = 0; first < d.v_dim; first += kTile) {
        const std::size_t columns = std::min(kTile, d.v_dim - first);
        // Rows of a matrix are a power of two apart, which the L1 cache has few places for: a copy lies close together.
        for (std::size_t i = 0; i < d.k_dim; ++i) {
            std::memcpy(tile + i * columns, matrix + i * d.v_dim + first, columns * sizeof(float));
        }
        for (std::size_t t = 0; t < tokens; ++t) {
            const float* v = d.mixed + (start + t) * width + 2 * keys + head * d.v_dim + first;
            const float *q = qs + t * d.k_dim, *k = ks + t * d.k_dim;
            float* out = outs + t * d.v_dim + first;
            if (columns == kTile) {
                update_tile(tile, d.k_dim, columns, q, k, v, fades[t], betas[t], out);
            } else {
                for (std::size_t j = 0; j < columns; ++j) {
                    update_column(tile + j, d.k_dim, columns, q, k, v[j], fades[t], betas[t], out + j);
                }
            }
        }
        for (std::size_t i = 0; i < d.k_dim; ++i) {
            std::memcpy(matrix + i * d.v_dim + first, tile + i * columns, columns * sizeof(float));
        }
    }
    for (std::size_t t = 0; t < tokens; ++t) {
        const float* read = outs + t * d.v_dim;
        const float scale = 1.0f / std::sqrt(sum_of_squares(read, d.v_dim) / static_cast<float>(d.v_dim) + d.eps);
        const T* z = static_cast<const T*>(d.z) + (start + t) * d.stride + head * d.v_dim;
        T* out = static_cast<T*>(d.out) + ((start + t) * d.value_heads + head) * d.v_dim;
        for (std::size_t first = 0; first < d.v_dim; first += kLanes) {
            const std::size_t n = std::min(kLanes, d.v_dim - first);
            float gates[kLanes] = {};
            for (std::size_t j = 0; j < n; ++j) gates[j] = get(z + first + j);
            silu_lanes(gates);
            for (std::size_t j = 0; j < n; ++j) put(out + first + j, read[first + j] * scale * d.norm[first + j] * gates[j]);
        }
    }
}

KVTROVE_CLONES void delta_f32(const Delta& d, std::size_t start, std::size_t stop, std::size_t seat, std::size_t head,
                              float* scratch) {
    delta_head<float>(d, start, stop, seat, head, scratch);
}

KVTROVE_CLONES void delta_bf16(const Delta& d, std::size_t start, std::size_t stop, std::size_t seat, std::size_t head,
                               float* scratch) {
    delta_head<std::uint16_t>(d, start, stop, seat, head, scratch);
}

std::size_t team(std::size_t elements) {
    return std::min(max_threads(), std::max<std::size_t>(1, elements / kWorthAThread));
}

}  // namespace

void convolve(const Convolution& c, const StateStep& step) {
    constexpr std::size_t kChannels = 256;
    const std::size_t slices = (c.width + kChannels - 1) / kChannels;
    const auto tokens = static_cast<std::size_t>(step.starts[step.sequences]);
    parallel(slices * step.sequences, team(tokens * c.width), [&](std::size_t part, std::size_t) {
        const std::size_t s = part / slices, first = part % slices * kChannels;
        const std::size_t last = std::min(c.width, first + kChannels);
        (c.is_bf16 ? convolve_bf16 : convolve_f32)(c, step.starts[s], step.starts[s + 1], step.seats[s], first, last);
    });
}

void gated_delta(const Delta& d, const StateStep& step) {
    std::size_t longest = 0;
    for (std::size_t s = 0; s < step.sequences; ++s) {
        longest = std::max(longest, static_cast<std::size_t>(step.starts[s + 1] - step.starts[s]));
    }
    const auto tokens = static_cast<std::size_t>(step.starts[step.sequences]);
    const std::size_t threads = team(tokens * d.value_heads * d.k_dim * d.v_dim);
    const std::size_t each = longest * (2 * d.k_dim + d.v_dim + 2) + d.k_dim * kTile;
    std::vector<float> scratch(threads * each);
    parallel(step.sequences * d.value_heads, threads, [&](std::size_t part, std::size_t worker) {
        const std::size_t s = part / d.value_heads, head = part % d.value_heads;
        (d.is_bf16 ? delta_bf16 : delta_f32)(d, step.starts[s], step.starts[s + 1], step.seats[s], head,
                                             scratch.data() + worker * each);
    });
}

}  // namespace kvtrove
