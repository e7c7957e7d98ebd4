// Sixteen numbers at a time, for mixers with a running state. Compile with -ffp-contract=off: products are not joined with
// sums, and every number has a sum of its own in one order, so all vector widths give the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/vector/silu.h"
#include "layers/states.h"

#define KVTROVE_INLINE [[gnu::always_inline]] inline
// Compiled several times where the loader can choose.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define KVTROVE_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define KVTROVE_CLONES
#endif

namespace kvtrove {

namespace {

constexpr std::size_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * sizeof(std::uint32_t))));
typedef std::uint16_t Halves __attribute__((vector_size(kLanes * sizeof(std::uint16_t))));

KVTROVE_INLINE float get(const float* p) { return *p; }
KVTROVE_INLINE float get(const std::uint16_t* p) { return float_of_bfloat16(*p); }
KVTROVE_INLINE void put(float* p, float x) { *p = x; }
KVTROVE_INLINE void put(std::uint16_t* p, float x) { *p = bfloat16_of_float(x); }

KVTROVE_INLINE Lanes load(const float* p) {
    Lanes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

KVTROVE_INLINE Lanes load(const std::uint16_t* p) {
    Halves x;
    std::memcpy(&x, p, sizeof x);
    return reinterpret_cast<Lanes>(__builtin_convertvector(x, Words) << 16);
}

KVTROVE_INLINE void store(float* p, const Lanes& x) { std::memcpy(p, &x, sizeof x); }

// The first n numbers, zeros behind them.
template <class T>
KVTROVE_INLINE Lanes load_some(const T* p, std::size_t n) {
    if (n >= kLanes) return load(p);
    T some[kLanes] = {};
    std::memcpy(some, p, n * sizeof(T));
    return load(some);
}

KVTROVE_INLINE void store_some(float* p, const Lanes& x, std::size_t n) {
    std::memcpy(p, &x, std::min(n, kLanes) * sizeof(float));
}

KVTROVE_INLINE float sum_of(const Lanes& x) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < kLanes; ++i) sum += x[i];
    return sum;
}

KVTROVE_INLINE float sum_of_squares(const float* x, std::size_t size) {
    Lanes lanes = {};
    for (std::size_t i = 0; i < size; i += kLanes) {
        const Lanes some = load_some(x + i, size - i);
        lanes += some * some;
    }
    return sum_of(lanes);
}

KVTROVE_INLINE float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Channels [first, first + count) of the next tokens of a sequence, which its state moves on by. x: rows `stride` apart.
// y: rows `y_stride` apart, of these channels alone.
template <class T>
KVTROVE_INLINE void convolve_channels(const Taps& taps, const T* x, std::size_t stride, std::size_t tokens, T* state,
                                      std::size_t first, std::size_t count, float* y, std::size_t y_stride) {
    const std::size_t past = taps.kernel - 1, width = taps.width;
    const auto input = [&](std::size_t at) {  // what was read before the step, then x
        return (at < past ? state + at * width : x + (at - past) * stride) + first;
    };
    for (std::size_t t = 0; t < tokens; ++t, y += y_stride) {
        for (std::size_t i = 0; i < count; i += kLanes) {
            const std::size_t n = count - i;
            Lanes sum = load_some(input(t) + i, n) * load_some(taps.weight + first + i, n);
            for (std::size_t j = 1; j <= past; ++j) {
                sum += load_some(input(t + j) + i, n) * load_some(taps.weight + j * width + first + i, n);
            }
            if (taps.bias) sum += load_some(taps.bias + first + i, n);
            if (taps.silu) silu<Words>(sum);
            store_some(y + i, sum, n);
        }
    }
    for (std::size_t j = 0; j < past; ++j) std::memmove(state + j * width + first, input(tokens + j), count * sizeof(T));
}

}  // namespace

}  // namespace kvtrove
