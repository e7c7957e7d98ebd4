// Where a weight lies in its panel, for vectors and for tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/amx_tiles.h"
#include "common/parts.h"

namespace kvtrove {

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

namespace amx {

constexpr std::size_t kColumns = 16;                  // outputs of a tile
constexpr std::size_t kHalves = 2;                    // tiles of a panel, side by side
constexpr std::size_t kWidth = kHalves * kColumns;    // outputs of a panel
constexpr std::size_t kTile = 1024;                   // bytes of a whole one
constexpr std::size_t kStepBytes = kHalves * kTile;   // of a panel and the inputs of a tile
constexpr std::size_t kStep = 32, kByteStep = 64;     // inputs of a tile of bf16, of int8

// A panel is 32 outputs: step after step of inputs, in each the tiles of outputs 0-15 and 16-31, operands B as they are.
struct TilePlaces {
    static constexpr std::size_t kWidth = amx::kWidth;

    static std::size_t elements(std::size_t inputs, bool int8) {
        const std::size_t step = int8 ? kByteStep : kStep;
        return ceil_div(inputs, step) * step * kWidth;
    }
    static std::size_t bf16(std::size_t at, std::size_t input) { return place(at, input, kStep, 2); }
    static std::size_t int8(std::size_t at, std::size_t input) { return place(at, input, kByteStep, 4); }

    // group: inputs that lie together in a row of B.
    static std::size_t place(std::size_t at, std::size_t input, std::size_t step, std::size_t group) {
        const std::size_t tile = input / step * kHalves + at / kColumns;
        return tile * step * kColumns + input % step / group * (group * kColumns) + at % kColumns * group + input % group;
    }
};

}  // namespace amx

}  // namespace kvtrove
