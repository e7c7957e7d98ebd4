// Around the tiles of linear_amx.cpp: what lies in them, and the work on vectors of 16 lanes that turns x and int8 weights
// into them and sums into y. With KVTROVE_EMULATE_AMX there are no intrinsics in it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "linear_level.h"
#include "tiles.h"

#if defined(KVTROVE_EMULATE_AMX)
#define KVTROVE_AMX
#else
#include <immintrin.h>
#define KVTROVE_AMX \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,amx-tile,amx-bf16,amx-int8" KVTROVE_WIDE)))
#endif

namespace kvtrove::amx {

constexpr std::size_t kStep = 32;                                // inputs of a tile
constexpr std::size_t kColumns = 16;                             // outputs of a tile
constexpr std::size_t kTile = 1024;                              // bytes of a whole one
constexpr std::size_t kTileRows = tiles::kRows;                  // of x
constexpr std::size_t kHalves = 2;                               // tiles of a panel, side by side
constexpr std::size_t kLines = kHalves * kTile;                  // bytes of a panel and step as bf16
constexpr std::size_t kSums = kTileRows * kColumns;              // numbers in a tile of sums

typedef float Floats __attribute__((vector_size(64)));
typedef std::int32_t Ints __attribute__((vector_size(64)));
typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef std::uint16_t Halfwords __attribute__((vector_size(32)));

// A panel is 32 outputs: step after step of 32 inputs, in each the tiles of outputs 0-15 and 16-31. A bf16 tile is operand
// B as it is. An int8 tile is half as long: 64 bytes become two rows of B, in the order in which unpacking words of 128
// bits makes the one row of the low and the other of the high half of each.
//
// An int8 weight v is stored as | v < 0 | |v| < 64 | the low six bits of |v| |, see `dequantise`.
struct TilePlaces {
    static constexpr std::size_t kWidth = kHalves * kColumns;
    static constexpr float kInt8Unit = 0.5f;

    static std::size_t elements(std::size_t inputs, bool) { return ceil_div(inputs, kStep) * kStep * kWidth; }

    static std::size_t tile(std::size_t at, std::size_t input) {
        return (input / kStep * kHalves + at / kColumns) * kStep * kColumns;
    }
    static std::size_t bf16(std::size_t at, std::size_t input) {
        return tile(at, input) + input % kStep / 2 * (2 * kColumns) + at % kColumns * 2 + input % 2;
    }
    static std::size_t int8(std::size_t at, std::size_t input) {
        const std::size_t row = input % kStep / 2, word = at % kColumns * 2 + input % 2;
        return tile(at, input) + row / 2 * 64 + word / 8 * 16 + row % 2 * 8 + word % 8;
    }
    static constexpr std::uint8_t encode(std::int8_t weight) {
        const int size = weight < 0 ? -weight : weight;
        return static_cast<std::uint8_t>((weight < 0) << 7 | (size < 64) << 6 | (size & 63));
    }
    static constexpr std::int8_t decode(std::uint8_t byte) {
        const int size = (byte & 63) | (~byte & 64);
        return static_cast<std::int8_t>(byte & 128 ? -size : size);
    }
};

// The bytes of the bf16 numbers 2 * 0 .. 2 * 63.
struct Doubles {
    alignas(64) std::uint8_t low[64] = {}, high[64] = {};

    constexpr Doubles() {
        for (int i = 1; i < 64; ++i) {
            int exponent = 0;
            while (2 * i >> (exponent + 1)) ++exponent;
            const int bits = (127 + exponent) << 7 | ((2 * i << (7 - exponent)) & 127);
            low[i] = bits & 255, high[i] = bits >> 8;
        }
    }
};
constexpr Doubles kDoubles;

// Weights are asked for so many bytes before they are needed: one page, because the processor's own prefetching starts
// anew in every page. Tile loads alone keep too few lines under way.
constexpr std::size_t kAhead = 4096;

// `bytes` stored weights become bf16 numbers 2 * v, exactly, in the order of operand B. Below 64 both bytes of 2 * |v| are
// looked up; from 64 to 127 they are 0x43 and 2 * (|v| - 64), so a table of 64 entries, one instruction, is enough. That
// is 8 instructions for 64 weights: arithmetic on 16 or 32 bits takes more, tables of 128 entries take three each.
KVTROVE_AMX inline void dequantise(const std::uint8_t* from, std::size_t bytes, std::uint8_t* to) {
#if defined(KVTROVE_EMULATE_AMX)
    for (std::size_t i = 0; i < bytes; ++i) {
        const std::uint8_t code = from[i], twice = static_cast<std::uint8_t>(code + code);
        const bool looked_up = twice & 128;
        std::uint8_t* word = to + i / 64 * 128 + i % 16 / 8 * 64 + i % 64 / 16 * 16 + i % 8 * 2;
        word[0] = looked_up ? kDoubles.low[code & 63] : twice;
        word[1] = static_cast<std::uint8_t>((looked_up ? kDoubles.high[code & 63] : 0x43) | (code & 128));
    }
#else
    const __m512i lows = _mm512_load_si512(kDoubles.low), highs = _mm512_load_si512(kDoubles.high);
    const __m512i large = _mm512_set1_epi8(0x43), signs = _mm512_set1_epi8(static_cast<char>(0x80));
    for (std::size_t i = 0; i < bytes; i += 64, to += 128) {
        __builtin_prefetch(from + i + kAhead);
        const __m512i code = _mm512_load_si512(from + i), twice = _mm512_add_epi8(code, code);
        const __mmask64 looked_up = _mm512_movepi8_mask(twice);
        const __m512i low = _mm512_mask_permutexvar_epi8(twice, looked_up, code, lows);
        const __m512i size = _mm512_mask_permutexvar_epi8(large, looked_up, code, highs);
        const __m512i high = _mm512_ternarylogic_epi64(size, code, signs, 0xF8);  // size | (code & signs)
        _mm512_store_si512(to, _mm512_unpacklo_epi8(low, high));
        _mm512_store_si512(to + 64, _mm512_unpackhi_epi8(low, high));
    }
#endif
}

// 16 numbers as the sum of three bf16, exactly, the smallest first: each takes 8 of the 24 bits that are left. Infinity and
// NaN are the last part alone. (Parts below 2^-126 are lost: tiles take subnormal numbers for zero.)
KVTROVE_AMX inline void split(const float* x, std::uint16_t* to, std::size_t part_stride) {
    Floats rest;
    std::memcpy(&rest, x, sizeof rest);
    const Words bits = reinterpret_cast<Words>(rest);
    const Words no_number = reinterpret_cast<Words>((bits & 0x7fffffffu) > 0x7f800000u);
    const Words finite = reinterpret_cast<Words>((bits & 0x7f800000u) != 0x7f800000u);
    for (std::size_t part = 3; part-- > 0;) {
        Words top = reinterpret_cast<Words>(rest) & 0xffff0000u;
        rest = reinterpret_cast<Floats>(reinterpret_cast<Words>(rest - reinterpret_cast<Floats>(top)) & finite);
        if (part == 2) top |= no_number & 0x400000u;
        const Halfwords words = __builtin_convertvector(top >> 16, Halfwords);
        std::memcpy(to + part * part_stride, &words, sizeof words);
    }
}

// 32 inputs of a row of x, of which `count` exist, become a row of its tiles: one of bf16, three of float32.
KVTROVE_AMX inline void pack_row(const float* x, std::size_t count, std::uint8_t* to, std::size_t tile_bytes) {
    float line[kStep] = {};
    if (count < kStep) x = static_cast<const float*>(std::memcpy(line, x, count * sizeof(float)));
    for (std::size_t i = 0; i < kStep; i += 16) split(x + i, reinterpret_cast<std::uint16_t*>(to) + i, tile_bytes / 2);
}

KVTROVE_AMX inline void pack_row(const std::uint16_t* x, std::size_t count, std::uint8_t* to, std::size_t) {
    if (count == kStep) {
        std::memcpy(to, x, kStep * 2);
        return;
    }
    std::memset(to, 0, kStep * 2);
    std::memcpy(to, x, count * 2);
}

// 16 values of y. Rounding is to nearest, ties to even, as in bfloat16_of_float.
KVTROVE_AMX inline void store(Floats values, Float type, void* y, std::size_t at, std::size_t count) {
    if (type == Float::f32) {
        std::memcpy(static_cast<float*>(y) + at, &values, count * sizeof(float));
        return;
    }
    const Words bits = reinterpret_cast<Words>(values);
    const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Words no_number = reinterpret_cast<Words>(values != values);
    const Halfwords words = __builtin_convertvector((rounded & ~no_number) | (no_number & (bits >> 16 | 0x40)), Halfwords);
    std::memcpy(static_cast<std::uint16_t*>(y) + at, &words, count * sizeof(std::uint16_t));
}

// Rows row .. row + count of y in one panel, from the two tiles of their sums; outputs that only fill it up are left out.
KVTROVE_AMX inline void finish(const Product& job, std::size_t panel, std::size_t row, std::size_t count,
                               const float* sums) {
    for (std::size_t half = 0; half < kHalves; ++half, sums += kSums) {
        const std::size_t first = (panel * kHalves + half) * kColumns;
        if (first >= job.outputs) return;
        const std::size_t columns = std::min(kColumns, job.outputs - first);
        Floats scale{}, bias{};
        if (job.scales) std::memcpy(&scale, job.scales + first, sizeof scale);
        if (job.bias) std::memcpy(&bias, job.bias + first, columns * sizeof(float));
        for (std::size_t r = 0; r < count; ++r) {
            Floats values;
            std::memcpy(&values, sums + r * kColumns, sizeof values);
            if (job.scales) values *= scale;
            if (job.bias) values += bias;
            const std::size_t at = (row + r) * job.outputs + first;
            columns == kColumns ? store(values, job.type, job.y, at, kColumns) : store(values, job.type, job.y, at, columns);
        }
    }
}

}  // namespace kvtrove::amx
