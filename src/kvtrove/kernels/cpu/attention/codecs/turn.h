// Turning of vectors, as kv/formats/codes.py does: fixed signs, then the Hadamard transform of each run of as many elements
// as the largest power of two that divides their number. Orthonormal: products stay what they are.
#pragma once

#include <array>
#include <cmath>

#include "attention/attention.h"

namespace kvtrove::attention {

// -1 or 1 for each element: a bit of its number, hashed (the last steps of MurmurHash3).
constexpr std::array<float, kMaxDim> make_signs() {
    std::array<float, kMaxDim> signs{};
    for (std::uint32_t d = 1; d <= kMaxDim; ++d) {
        std::uint32_t h = d ^ d >> 16;
        h *= 0x85EBCA6B;
        h = (h ^ h >> 13) * 0xC2B2AE35;
        signs[d - 1] = (h ^ h >> 16) & 1 ? -1.0f : 1.0f;
    }
    return signs;
}

inline constexpr std::array<float, kMaxDim> kSigns = make_signs();

inline void hadamard(float* x, int dim) {
    const int size = dim & -dim;
    for (int half = 1; half < size; half *= 2)
        for (int begin = 0; begin < dim; begin += 2 * half)
            for (int i = begin; i < begin + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b, x[i + half] = a - b;
            }
    const auto factor = static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
    for (int i = 0; i < dim; ++i) x[i] *= factor;
}

// x: [dim]
inline void turn(float* x, int dim) {
    for (int i = 0; i < dim; ++i) x[i] *= kSigns[i];
    hadamard(x, dim);
}

inline void turn_back(float* x, int dim) {
    hadamard(x, dim);
    for (int i = 0; i < dim; ++i) x[i] *= kSigns[i];
}

}  // namespace kvtrove::attention
