// What lies in the tiles of linear/levels/amx.cpp: the layout of the weights, and x packed beside it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/amx_tiles.h"
#include "common/memory.h"
#include "common/parts.h"
#include "linear/level.h"

#if defined(KVTROVE_EMULATE_AMX)
#define KVTROVE_AMX
#else
#define KVTROVE_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-bf16,amx-int8" KVTROVE_WIDE)))
#endif

namespace kvtrove::amx {

constexpr std::size_t kColumns = 16;                  // outputs of a tile
constexpr std::size_t kHalves = 2;                    // tiles of a panel, side by side
constexpr std::size_t kWidth = kHalves * kColumns;    // outputs of a panel
constexpr std::size_t kTile = 1024;                   // bytes of a whole one
constexpr std::size_t kStepBytes = kHalves * kTile;   // of a panel and the inputs of a tile
constexpr std::size_t kStep = 32, kByteStep = 64;     // inputs of a tile of bf16, of int8
constexpr std::size_t kTileRows = tiles::kRows;       // of x
constexpr std::size_t kSums = kTileRows * kColumns;   // numbers in a tile of sums

typedef float Floats __attribute__((vector_size(64)));
typedef std::int32_t Ints __attribute__((vector_size(64)));
typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef std::uint16_t Halfwords __attribute__((vector_size(32)));
typedef std::int8_t Bytes __attribute__((vector_size(16)));

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

// x in operands A: [tiles of 16 rows][steps][parts], tiles of `tile` bytes. Packed once per call, for all threads: rows
// whose stride is a multiple of 4096 bytes would push each other out of L1, and a tile could not end where a row does.
struct PackedX {
    const std::uint8_t* at;
    std::size_t steps, parts, tile;

    const std::uint8_t* find(std::size_t row_tile, std::size_t step) const {
        return at + (row_tile * steps + step) * parts * tile;
    }
    std::size_t row_tile_bytes() const { return steps * parts * tile; }
};

}  // namespace kvtrove::amx
