// Gated DeltaNet. A part of the work is a key head of a sequence, with its convolutions and all its value heads: nothing has
// to wait for another part, and a state passes by once a token.
//
//   one token      rows of a matrix from memory: S^T k.  The same rows, now in L2: S <- fade S + k w^T, S^T q.
//   more tokens    columns of it, copied so that they lie close together in L1: all tokens, one after the other
#include <vector>

#include "layers/state_lanes.h"
#include "common/threads.h"

namespace kvtrove {

namespace {

constexpr std::size_t kTile = 64;     // columns of a matrix that many tokens meet together: 128 rows of them stay in L1
constexpr std::size_t kStrip = 128;   // columns that one token meets together: their sums stay in registers
constexpr std::size_t kTokens = 256;  // whose inputs are held at once

struct Part {
    std::size_t start, stop, seat, key_head;
    const float* next;  // the matrix that this thread will probably read then, or null
};

// A token's way through kLanes * N columns: their update, and what they read.
template <std::size_t N>
KVTROVE_INLINE void update_columns(float* columns, std::size_t rows, std::size_t stride, const float* q, const float* k,
                                   const float* v, float fade, float beta, float* out, const float* next) {
    Lanes sums[N] = {}, wrong[N];
    for (std::size_t i = 0; i < rows; ++i) {
        const float* row = columns + i * stride;
#pragma GCC unroll 8
        for (std::size_t j = 0; j < N; ++j) sums[j] += load(row + j * kLanes) * k[i];
    }
#pragma GCC unroll 8
    for (std::size_t j = 0; j < N; ++j) {
        wrong[j] = (load(v + j * kLanes) - fade * sums[j]) * beta;
        sums[j] = Lanes{};
    }
    for (std::size_t i = 0; i < rows; ++i) {
        float* row = columns + i * stride;
        if (next) {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < N; ++j) __builtin_prefetch(next + i * stride + j * kLanes, 1, 2);
        }
#pragma GCC unroll 8
        for (std::size_t j = 0; j < N; ++j) {
            const Lanes s = load(row + j * kLanes) * fade + k[i] * wrong[j];
            store(row + j * kLanes, s);
            sums[j] += s * q[i];
        }
    }
#pragma GCC unroll 8
    for (std::size_t j = 0; j < N; ++j) store(out + j * kLanes, sums[j]);
}

// The same of a single column, in the same order.
KVTROVE_INLINE void update_column(float* column, std::size_t rows, std::size_t stride, const float* q, const float* k,
                                  float v, float fade, float beta, float* out) {
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

// `count` columns at `columns`, of matrices whose rows lie `stride` apart.
KVTROVE_INLINE void update(float* columns, std::size_t count, std::size_t rows, std::size_t stride, const float* q,
                           const float* k, const float* v, float fade, float beta, float* out, const float* next) {
    std::size_t j = 0;
    for (; j + kStrip <= count; j += kStrip) {
        update_columns<kStrip / kLanes>(columns + j, rows, stride, q, k, v + j, fade, beta, out + j, next ? next + j : next);
    }
    for (; j + kTile <= count; j += kTile) {
        update_columns<kTile / kLanes>(columns + j, rows, stride, q, k, v + j, fade, beta, out + j, next ? next + j : next);
    }
    for (; j < count; ++j) update_column(columns + j, rows, stride, q, k, v[j], fade, beta, out + j);
}

KVTROVE_INLINE void make_unit(float* x, std::size_t size, float eps, float factor) {
    const float scale = factor / std::sqrt(sum_of_squares(x, size) + eps);
    for (std::size_t i = 0; i < size; ++i) x[i] *= scale;
}

// What a head has read of a token, normed and gated.
template <class T>
KVTROVE_INLINE void write_out(const Delta& d, const float* read, const T* z, T* out) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(read, d.v_dim) / static_cast<float>(d.v_dim) + d.eps);
    for (std::size_t first = 0; first < d.v_dim; first += kLanes) {
        const std::size_t n = std::min(kLanes, d.v_dim - first);
        Lanes gate = load_some(z + first, n);
        silu<Words>(gate);
        const Lanes result = load_some(read + first, n) * scale * load_some(d.norm + first, n) * gate;
        for (std::size_t j = 0; j < n; ++j) put(out + first + j, result[j]);
    }
}

// Memory of a part: of each token q, k, v of all its heads, what a head reads, its factors; then columns of a matrix.
std::size_t part_floats(const Delta& d, std::size_t tokens) {
    return tokens * (2 * d.k_dim + d.value_heads / d.key_heads * d.v_dim + d.v_dim + 2) + d.k_dim * kTile;
}

template <class T>
KVTROVE_INLINE void mix_tokens(const Delta& d, const Mixed& mixed, const Part& part, std::size_t start, std::size_t tokens,
                               float* scratch) {
    const std::size_t keys = d.key_heads * d.k_dim, values = d.value_heads * d.v_dim, each = d.value_heads / d.key_heads;
    const std::size_t width = 2 * d.k_dim + each * d.v_dim, key_head = part.key_head;
    float *own = scratch, *reads = own + tokens * width, *fades = reads + tokens * d.v_dim, *betas = fades + tokens;
    float* tile = betas + tokens;
    const T* x = static_cast<const T*>(mixed.x) + start * mixed.stride;
    T* conv = static_cast<T*>(mixed.conv) + part.seat * mixed.conv_stride;
    const auto convolve = [&](std::size_t first, std::size_t count, float* y) __attribute__((always_inline)) {
        convolve_channels<T>(d.taps, x, mixed.stride, tokens, conv, first, count, y, width);
    };
    convolve(key_head * d.k_dim, d.k_dim, own);
    convolve(keys + key_head * d.k_dim, d.k_dim, own + d.k_dim);
    convolve(2 * keys + key_head * each * d.v_dim, each * d.v_dim, own + 2 * d.k_dim);
    for (std::size_t t = 0; t < tokens; ++t) {
        make_unit(own + t * width, d.k_dim, d.unit_eps, 1.0f / std::sqrt(static_cast<float>(d.k_dim)));
        make_unit(own + t * width + d.k_dim, d.k_dim, d.unit_eps, 1.0f);
    }
    for (std::size_t e = 0; e < each; ++e) {
        const std::size_t head = key_head * each + e;
        float* matrix = mixed.matrix + part.seat * mixed.matrix_stride + head * d.k_dim * d.v_dim;
        const T* behind = x + 2 * keys + values;  // z | b | a
        for (std::size_t t = 0; t < tokens; ++t) {
            const T* gates = behind + t * mixed.stride + values + head;
            fades[t] = std::exp(-d.decay[head] * softplus(get(gates + d.value_heads) + d.dt[head]));
            betas[t] = 1.0f / (1.0f + std::exp(-get(gates)));
        }
        const auto pass = [&](float* columns, std::size_t first, std::size_t count, std::size_t stride,
                              const float* next) __attribute__((always_inline)) {
            for (std::size_t t = 0; t < tokens; ++t) {
                const float *q = own + t * width, *v = q + 2 * d.k_dim + e * d.v_dim + first;
                update(columns, count, d.k_dim, stride, q, q + d.k_dim, v, fades[t], betas[t], reads + t * d.v_dim + first, next);
            }
        };
        if (tokens == 1) {
            pass(matrix, 0, d.v_dim, d.v_dim, e + 1 < each ? matrix + d.k_dim * d.v_dim : part.next);
        }
        // Rows of a matrix are a power of two apart, which the L1 cache has few places for: a copy lies close together.
        for (std::size_t first = 0; tokens > 1 && first < d.v_dim; first += kTile) {
            const std::size_t count = std::min(kTile, d.v_dim - first);
            for (std::size_t i = 0; i < d.k_dim; ++i) {
                std::memcpy(tile + i * count, matrix + i * d.v_dim + first, count * sizeof(float));
            }
            pass(tile, first, count, count, nullptr);
            for (std::size_t i = 0; i < d.k_dim; ++i) {
                std::memcpy(matrix + i * d.v_dim + first, tile + i * count, count * sizeof(float));
            }
        }
        for (std::size_t t = 0; t < tokens; ++t) {
            write_out(d, reads + t * d.v_dim, behind + t * mixed.stride + head * d.v_dim,
                      static_cast<T*>(mixed.out) + ((start + t) * d.value_heads + head) * d.v_dim);
        }
    }
}

template <class T>
KVTROVE_INLINE void mix_part(const Delta& d, const Mixed& mixed, const Part& part, float* scratch) {
    for (std::size_t start = part.start; start < part.stop; start += kTokens) {
        mix_tokens<T>(d, mixed, part, start, std::min(kTokens, part.stop - start), scratch);
    }
}

KVTROVE_CLONES void mix_f32(const Delta& d, const Mixed& mixed, const Part& part, float* scratch) {
    mix_part<float>(d, mixed, part, scratch);
}

KVTROVE_CLONES void mix_bf16(const Delta& d, const Mixed& mixed, const Part& part, float* scratch) {
    mix_part<std::uint16_t>(d, mixed, part, scratch);
}

}  // namespace

void mix(const Delta& d, const Mixed& mixed, const StateStep& step) {
    std::size_t longest = 0;
    for (std::size_t s = 0; s < step.sequences; ++s) {
        longest = std::max(longest, static_cast<std::size_t>(step.starts[s + 1] - step.starts[s]));
    }
    const auto tokens = static_cast<std::size_t>(step.starts[step.sequences]);
    const std::size_t threads = state_threads(tokens * d.value_heads * d.k_dim * d.v_dim), parts = step.sequences * d.key_heads;
    const std::size_t each = part_floats(d, std::min(longest, kTokens)), of_part = d.value_heads / d.key_heads * d.k_dim * d.v_dim;
    std::vector<float> scratch(threads * each);
    const auto matrices = [&](std::size_t part) {
        return mixed.matrix + step.seats[part / d.key_heads] * mixed.matrix_stride + part % d.key_heads * of_part;
    };
    parallel(parts, threads, [&](std::size_t index, std::size_t worker) {
        const std::size_t s = index / d.key_heads, after = index + threads;
        const Part part{static_cast<std::size_t>(step.starts[s]), static_cast<std::size_t>(step.starts[s + 1]),
                        static_cast<std::size_t>(step.seats[s]), index % d.key_heads,
                        after < parts ? matrices(after) : nullptr};
        (mixed.is_bf16 ? mix_bf16 : mix_f32)(d, mixed, part, scratch.data() + worker * each);
    });
}

}  // namespace kvtrove
