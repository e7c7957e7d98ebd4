// What one instruction set offers for linear layers. linear_tile.inc is compiled once for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "linear.h"

namespace kvtrove {

inline float from_bf16(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// To nearest, ties to even; a NaN stays one.
inline std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<std::uint16_t>(value != value ? 0x7fc0 : rounded);
}

constexpr std::size_t kByteGroup = 4;              // inputs of int8 weights that lie together
constexpr float kByteUnit = 1.0f / (1u << 24);     // what their sums are to be multiplied with, beside the scale

// One product, as its tasks see it.
struct Product {
    const std::uint8_t* weights;
    std::size_t panel_bytes, inputs, outputs;
    const float* scales;  // of int8 weights, times kByteUnit; null: the weights are bf16
    const float* bias;    // null: none
    const void* x;
    void* y;
    Float type;  // of x and y
};

// Half-open ranges of rows of x and of panels.
struct Part {
    std::size_t row, row_end, panel, panel_end;
};

struct LinearLevel {
    std::size_t width;      // outputs in a panel
    std::size_t few;        // up to so many rows, a task reads its weights once and x as it lies, which must be float32
    std::size_t most_rows;  // of a task with more rows
    std::size_t most_panels;
    void (*run_few)(const Product&, const Part&);
    void (*run_many)(const Product&, const Part&);
};

}  // namespace kvtrove
