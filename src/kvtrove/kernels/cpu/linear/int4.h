// Linear layers whose weights are integers of 0..15: value = scale * integer + minimum, with one scale and one minimum
// for 32 inputs of an output (in float16, or in float32 where they come from elsewhere and must stay as they are).
//
// x meets them in whole numbers, as int8 weights do on tiles: every stretch of 256 inputs of a row becomes integers of
// 15 bits and one float32 scale, off by 2^-15 of the stretch's largest number at most. An integer is 128 * high + low,
// both int8. What follows is exact up to the group, then float32, every operation rounded by itself:
//
//   dot = sum of x * integers over 32 inputs                            exact
//   stretch = ((0 + term of group 0) + term of group 1) + ...           term = scale * dot + minimum * sum of x
//   y = ((0 + stretch 0 * its scale) + stretch 1 * its scale) + ... + bias
//
// All levels give the same bits, with any number of rows, in parts or not: vectors and tiles may serve one matrix.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/parts.h"
#include "linear/level.h"

namespace kvtrove::int4 {

constexpr std::size_t kWidth = 32;           // outputs of a panel
constexpr std::size_t kGroup = 32;           // inputs that share a scale
constexpr std::size_t kStretch = 256;        // inputs of a row of x that share a scale
constexpr std::size_t kGroups = kStretch / kGroup;
constexpr std::size_t kWord = 8;             // inputs in a 32-bit word of an output
constexpr std::size_t kWordsBytes = kWidth * sizeof(std::uint32_t);    // of a panel and 8 inputs
constexpr std::size_t kNumbersBytes = kGroup / kWord * kWordsBytes;    // of a panel and a group
constexpr std::size_t kAhead = 2560;         // bytes of a panel that are asked for before their turn
constexpr float kMostX = 127 * 128;

// A panel is group after group: scales [32], minima [32], then words [4][32] of 8 inputs each, whose first four are the low
// halves of the bytes. One thread reads one run of memory.
constexpr std::size_t scale_bytes(bool wide) { return wide ? sizeof(float) : sizeof(std::uint16_t); }
constexpr std::size_t head_bytes(bool wide) { return 2 * kWidth * scale_bytes(wide); }
constexpr std::size_t group_bytes(bool wide) { return head_bytes(wide) + kNumbersBytes; }
constexpr std::size_t panel_bytes(std::size_t inputs, bool wide) { return ceil_div(inputs, kGroup) * group_bytes(wide); }

// Four inputs at once.
INLINE std::int32_t word_at(const std::int8_t* from) {
    std::int32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// One output of a matrix: integers [whole groups of inputs], scales and minima [groups].
struct Row {
    std::uint8_t* numbers;
    float *scales, *minima;
};

// Output `at` of a panel. `put` rounds scales and minima that are not wide.
void put(std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, bool wide);
void get(const std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, bool wide);

// Integers, and scales and minima that float16 holds, of `inputs` finite numbers. Between rounding to the range of a group
// and rounding to the line that fits what came of it best, the nearer one counts. False: beyond what float16 holds.
bool quantise(const float* values, std::size_t inputs, const Row& to);

// A stretch of a row of x. sums: of the integers of each group. A NaN or an infinity makes the scale NaN, and so every sum
// of the row.
struct alignas(64) Stretch {
    std::int8_t high[kStretch], low[kStretch];
    float sums[kGroups];
    float scale;
};

constexpr std::size_t kMostRows = 128;  // of a part: their sums and x of a stretch stay in L2
constexpr std::size_t kRowsBehind = 16;  // of x, left open: so many may be read behind the last one

// What a level brings: x into stretches [stretches][rows], from float32 and from bf16; the products of a part, with narrow
// and with wide scales.
struct Means {
    void (*pack[2])(const Product& job, std::size_t row, std::size_t row_end, std::size_t rows, Stretch* to);
    void (*run[2])(const Product& job, const Stretch* x, std::size_t rows, const Part& part);
};

// Those of vectors at the level of tiles.
const Means& means_beside_tiles();

// All of a product, with all threads.
void multiply(const Means& level, const Product& job, std::size_t rows);

// y of some rows and a panel from their sums [rows][32]: bias and rounding. Outputs that only fill up the last panel are
// left out.
void write_rows(const Product& job, std::size_t row, std::size_t rows, std::size_t panel, const float* totals);

}  // namespace kvtrove::int4
