// What one instruction set offers for linear layers: how weights lie in memory, and a product. Those of vectors are one
// source that each level compiles; tiles have their own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"
#include "common/parts.h"
#include "common/vector/target.h"
#include "linear/layout.h"
#include "linear/linear.h"

namespace kvtrove {

// How 32 inputs of an output lie together: in 4 or 8 bits, with scales in float16 or float32 (linear/groups.h).
enum class Form : std::uint8_t { nibbles, nibbles_f32, bytes, bytes_f32 };
constexpr std::size_t kForms = 4;

// One product, as its tasks see it.
struct Product {
    const std::uint8_t* weights;
    std::size_t panel_bytes, inputs, outputs;
    const float* scales;  // of int8 weights, whole panels; null: of bf16, and in groups
    const float* bias;    // null: none
    const void* x;
    void* y;
    Float type;  // of x and y
    bool streams = false;  // y is written past the caches: it is large, and its rows are whole cache lines
    bool gated = false;    // y [rows, outputs / 2] = silu(first half of the outputs) * second half
    Form form = Form::nibbles;  // of weights in groups

    std::size_t y_width() const { return gated ? outputs / 2 : outputs; }

    // The same for rows from `row` on.
    Product from(std::size_t row) const {
        Product rest = *this;
        rest.x = static_cast<const std::uint8_t*>(x) + row * inputs * bytes_of(type);
        rest.y = static_cast<std::uint8_t*>(y) + row * y_width() * bytes_of(type);
        return rest;
    }
};

struct LinearLevel {
    Layout layout;
    std::size_t rows_at_once;                            // that pass through several matrices before the next ones do
    bool gates;                                          // takes gated products whose halves are whole panels
    void (*multiply)(const Product&, std::size_t rows);  // all of it, with all threads
    void (*multiply_groups)(const Product&, std::size_t rows);  // the same with weights in groups (linear/groups.h)
};

extern const LinearLevel kPortableLevel, kAvx2Level, kAvx512Level, kAmxLevel;  // the last three: where they are compiled

INLINE float widened(float x) { return x; }
INLINE float widened(std::uint16_t bits) { return float_of_bfloat16(bits); }

}  // namespace kvtrove
