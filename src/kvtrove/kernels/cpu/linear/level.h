// What one instruction set offers for linear layers: how weights lie in memory, and a product. kernels/vector_bf16.h is
// compiled once for each set of vector instructions; levels/amx.cpp is for tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/parts.h"
#include "linear/linear.h"

// Part of a target string: gcc would rather take vectors of 256 bits; clang takes those that are written, and refuses it.
#if defined(__clang__)
#define KVTROVE_WIDE ""
#else
#define KVTROVE_WIDE ",prefer-vector-width=512"
#endif

namespace kvtrove {

// How 32 inputs of an output lie together: in 4 or 8 bits, with scales in float16 or float32 (linear/groups.h).
enum class Form : std::uint8_t { nibbles, nibbles_f32, bytes, bytes_f32, codes, nibbles_symmetric };
constexpr std::size_t kForms = 6;

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

// Where a weight lies in its panel. Rows hold the weights of one output, `at` of its panel: bf16 bits, or int8 numbers.
struct Layout {
    std::size_t width;                               // outputs in a panel
    std::size_t (*elements)(std::size_t inputs, bool int8);  // of a panel
    void (*put_bf16)(std::uint8_t* panel, std::size_t at, const std::uint16_t* row, std::size_t inputs);
    void (*put_int8)(std::uint8_t* panel, std::size_t at, const std::int8_t* row, std::size_t inputs);
    void (*get_bf16)(const std::uint8_t* panel, std::size_t at, std::uint16_t* row, std::size_t inputs);
    void (*get_int8)(const std::uint8_t* panel, std::size_t at, std::int8_t* row, std::size_t inputs);
};

// The layout whose places are those of `Places`: kWidth, elements(), bf16(at, input) and int8(at, input), the number of an
// element in its panel.
template <class Places>
constexpr Layout layout_of() {
    return {Places::kWidth,
            Places::elements,
            [](std::uint8_t* panel, std::size_t at, const std::uint16_t* row, std::size_t inputs) {
                auto* to = reinterpret_cast<std::uint16_t*>(panel);
                for (std::size_t k = 0; k < inputs; ++k) to[Places::bf16(at, k)] = row[k];
            },
            [](std::uint8_t* panel, std::size_t at, const std::int8_t* row, std::size_t inputs) {
                for (std::size_t k = 0; k < inputs; ++k) panel[Places::int8(at, k)] = static_cast<std::uint8_t>(row[k]);
            },
            [](const std::uint8_t* panel, std::size_t at, std::uint16_t* row, std::size_t inputs) {
                const auto* from = reinterpret_cast<const std::uint16_t*>(panel);
                for (std::size_t k = 0; k < inputs; ++k) row[k] = from[Places::bf16(at, k)];
            },
            [](const std::uint8_t* panel, std::size_t at, std::int8_t* row, std::size_t inputs) {
                for (std::size_t k = 0; k < inputs; ++k) row[k] = static_cast<std::int8_t>(panel[Places::int8(at, k)]);
            }};
}

// Panels of vectors: an output is a lane, input after input.
template <std::size_t Lanes>
struct VectorPlaces {
    static constexpr std::size_t kWidth = 2 * Lanes;  // a low and a high vector
    static constexpr std::size_t kByteGroup = 4;      // inputs of int8 weights that lie together

    static std::size_t elements(std::size_t inputs, bool int8) {
        return kWidth * (int8 ? ceil_div(inputs, kByteGroup) * kByteGroup : inputs);
    }
    static std::size_t bf16(std::size_t at, std::size_t input) {
        return input * kWidth + at % Lanes * 2 + at / Lanes;
    }
    static std::size_t int8(std::size_t at, std::size_t input) {
        const std::size_t in_word = input % 2 * 2 + input / 2 % 2;  // 0, 2, 1, 3: see kernels/vector_int8.h
        return (input / kByteGroup * kWidth + at) * kByteGroup + in_word;
    }
};

struct LinearLevel {
    Layout layout;
    std::size_t rows_at_once;                            // that pass through several matrices before the next ones do
    bool gates;                                          // takes gated products whose halves are whole panels
    void (*multiply)(const Product&, std::size_t rows);  // all of it, with all threads
    void (*multiply_groups)(const Product&, std::size_t rows);  // the same with weights in groups (linear/groups.h)
};

#if defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)
extern const LinearLevel kAmxLevel;
#endif

}  // namespace kvtrove
