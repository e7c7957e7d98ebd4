// Conversions of single 16-bit floating-point numbers, on integers alone: the same bits on every machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace kvtrove {

inline float float_of_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline std::uint32_t bits_of_float(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of_bfloat16(std::uint16_t h) { return float_of_bits(static_cast<std::uint32_t>(h) << 16); }

// Round to nearest, ties to even; a NaN stays one.
inline std::uint16_t bfloat16_of_float(float x) {
    const std::uint32_t bits = bits_of_float(x);
    const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

inline float float_of_float16(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, rest = h & 0x7FFF;
    if (rest >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // As a float32 exponent this is 112 too small; the product is exact and makes subnormals normal.
    return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}

// Round to nearest, ties to even; beyond 65504 infinity; a NaN stays one.
inline std::uint16_t float16_of_float(float x) {
    const std::uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);
    if (size >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);
    if (size < 0x38800000) {  // below 2^-14: adding 0.5 leaves the 10 bits at the bottom, rounded
        return static_cast<std::uint16_t>(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3F000000));
    }
    return static_cast<std::uint16_t>(sign | (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13);
}

}  // namespace kvtrove
