#include "layers/norms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "common/half.h"
#include "common/threads.h"
#include "common/vector/eight.h"
#include "common/vector/silu.h"

#define INLINE [[gnu::always_inline]] inline

namespace kvtrove {

namespace {

using namespace eight;

constexpr std::size_t kSums = 2 * kLanes;       // independent sums of squares
constexpr std::size_t kWorthAThread = 1 << 16;  // elements before another thread is woken

INLINE float get(const float* p) { return *p; }
INLINE float get(const std::uint16_t* p) { return float_of_bfloat16(*p); }
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(std::uint16_t* p, float x) { *p = bfloat16_of_float(x); }

// x as T can hold it.
template <class T>
INLINE float rounded(float x) {
    T held;
    put(&held, x);
    return get(&held);
}

template <class T>
INLINE float sum_of_squares(const T* x, std::size_t size) {
    Floats low = {}, high = {}, some, more;
    std::size_t i = 0;
    for (; i + kSums <= size; i += kSums) {
        load(x + i, some), load(x + i + kLanes, more);
        low += some * some, high += more * more;
    }
    float sums[kSums];
    store(sums, low), store(sums + kLanes, high);
    for (std::size_t j = 0; i + j < size; ++j) sums[j] += get(x + i + j) * get(x + i + j);
    for (std::size_t width = kSums / 2; width; width /= 2) {
        for (std::size_t j = 0; j < width; ++j) sums[j] += sums[j + width];
    }
    return sums[0];
}

// W: type of the weights; another one than T means a result that is rounded once.
template <class T, class W>
INLINE void norm_row(const T* x, const W* weight, T* y, std::size_t size, float eps) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(x, size) / static_cast<float>(size) + eps);
    std::size_t i = 0;
    for (Floats normed, factor; i + kLanes <= size; i += kLanes) {
        load(x + i, normed), load(weight + i, factor);
        normed *= scale;
        if (std::is_same_v<T, W>) round_to<T>(normed);
        store(y + i, normed * factor);
    }
    for (; i < size; ++i) {
        const float normed = get(x + i) * scale;
        put(y + i, (std::is_same_v<T, W> ? rounded<T>(normed) : normed) * get(weight + i));
    }
}

KVTROVE_EIGHT_CLONES void norm_f32(const float* x, const float* weight, float* y, std::size_t size, float eps) {
    norm_row(x, weight, y, size, eps);
}

KVTROVE_EIGHT_CLONES void norm_bf16(const std::uint16_t* x, const std::uint16_t* weight, std::uint16_t* y,
                                    std::size_t size, float eps) {
    norm_row(x, weight, y, size, eps);
}

KVTROVE_EIGHT_CLONES void norm_wide(const std::uint16_t* x, const float* weight, std::uint16_t* y, std::size_t size,
                                    float eps) {
    norm_row(x, weight, y, size, eps);
}

template <class T>
INLINE void add_row(T* x, const T* added, std::size_t size) {
    std::size_t i = 0;
    for (Floats sum, other; i + kLanes <= size; i += kLanes) {
        load(x + i, sum), load(added + i, other);
        store(x + i, sum + other);
    }
    for (; i < size; ++i) put(x + i, get(x + i) + get(added + i));
}

KVTROVE_EIGHT_CLONES void add_f32(float* x, const float* added, std::size_t size) { add_row(x, added, size); }
KVTROVE_EIGHT_CLONES void add_bf16(std::uint16_t* x, const std::uint16_t* added, std::size_t size) {
    add_row(x, added, size);
}

struct Silu {
    INLINE void operator()(Floats& x) const { silu<Words>(x); }
};
struct GeluTanh {
    INLINE void operator()(Floats& x) const { gelu_tanh<Words>(x); }
};

template <class T, class Gate>
INLINE void gate_lanes(const T* gate, const T* up, T* y, Gate activate) {
    Floats x, other;
    load(gate, x), load(up, other);
    activate(x);
    round_to<T>(x);
    store(y, x * other);
}

template <class T, class Gate>
INLINE void gate_row(const T* gate, const T* up, T* y, std::size_t size, Gate activate) {
    std::size_t i = 0;
    for (; i + kLanes <= size; i += kLanes) gate_lanes(gate + i, up + i, y + i, activate);
    T last[3][kLanes] = {};
    std::copy(gate + i, gate + size, last[0]), std::copy(up + i, up + size, last[1]);
    gate_lanes(last[0], last[1], last[2], activate);
    std::copy(last[2], last[2] + (size - i), y + i);
}

// By type of the numbers and gate: clones cannot be templates.
KVTROVE_EIGHT_CLONES void gate_row_of(const float* gate, const float* up, float* y, std::size_t size, Silu activate) {
    gate_row(gate, up, y, size, activate);
}

KVTROVE_EIGHT_CLONES void gate_row_of(const std::uint16_t* gate, const std::uint16_t* up, std::uint16_t* y,
                                      std::size_t size, Silu activate) {
    gate_row(gate, up, y, size, activate);
}

KVTROVE_EIGHT_CLONES void gate_row_of(const float* gate, const float* up, float* y, std::size_t size, GeluTanh activate) {
    gate_row(gate, up, y, size, activate);
}

KVTROVE_EIGHT_CLONES void gate_row_of(const std::uint16_t* gate, const std::uint16_t* up, std::uint16_t* y,
                                      std::size_t size, GeluTanh activate) {
    gate_row(gate, up, y, size, activate);
}

// run(row) for all rows, on several threads where that pays.
template <class Run>
void each_row(std::size_t rows, std::size_t size, Run run) {
    parallel_ranges(rows, rows * size > kWorthAThread ? max_threads() : 1, [&](std::size_t begin, std::size_t end) {
        for (std::size_t row = begin; row < end; ++row) run(row);
    });
}

void norm_at(const Norm& norm, const void* x, void* y, std::size_t at) {
    const auto* halves = static_cast<const std::uint16_t*>(x) + at;
    auto* out = static_cast<std::uint16_t*>(y) + at;
    if (norm.type == Float::f32) {
        norm_f32(static_cast<const float*>(x) + at, static_cast<const float*>(norm.weight),
                 static_cast<float*>(y) + at, norm.size, norm.eps);
    } else if (norm.wide) {
        norm_wide(halves, static_cast<const float*>(norm.weight), out, norm.size, norm.eps);
    } else {
        norm_bf16(halves, static_cast<const std::uint16_t*>(norm.weight), out, norm.size, norm.eps);
    }
}

template <class Gate>
void gate_and_mul(Gate activate, Float type, std::size_t rows, std::size_t size, std::ptrdiff_t stride, const void* gate,
                  const void* up, void* y) {
    each_row(rows, size, [&](std::size_t row) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(row) * stride;
        if (type == Float::f32) {
            gate_row_of(static_cast<const float*>(gate) + at, static_cast<const float*>(up) + at,
                        static_cast<float*>(y) + row * size, size, activate);
        } else {
            gate_row_of(static_cast<const std::uint16_t*>(gate) + at, static_cast<const std::uint16_t*>(up) + at,
                        static_cast<std::uint16_t*>(y) + row * size, size, activate);
        }
    });
}

}  // namespace

void rms_norm(const Norm& norm, const void* x, void* y) {
    each_row(norm.rows, norm.size, [&](std::size_t row) { norm_at(norm, x, y, row * norm.size); });
}

void add_rms_norm(const Norm& norm, void* x, const void* added, void* y) {
    each_row(norm.rows, norm.size, [&](std::size_t row) {
        const std::size_t at = row * norm.size;
        if (norm.type == Float::f32) {
            add_f32(static_cast<float*>(x) + at, static_cast<const float*>(added) + at, norm.size);
        } else {
            add_bf16(static_cast<std::uint16_t*>(x) + at, static_cast<const std::uint16_t*>(added) + at, norm.size);
        }
        norm_at(norm, x, y, at);
    });
}

void silu_and_mul(Float type, std::size_t rows, std::size_t size, std::ptrdiff_t stride, const void* gate,
                  const void* up, void* y) {
    gate_and_mul(Silu{}, type, rows, size, stride, gate, up, y);
}

void gelu_tanh_and_mul(Float type, std::size_t rows, std::size_t size, std::ptrdiff_t stride, const void* gate,
                       const void* up, void* y) {
    gate_and_mul(GeluTanh{}, type, rows, size, stride, gate, up, y);
}

}  // namespace kvtrove
