// Linear layers whose weights are integers of 0..15 or 0..255: value = scale * integer + minimum, with one scale and one
// minimum for 32 inputs of an output (in float16, or in float32 where they come from elsewhere and must stay as they are).
// Symmetric ones have no minimum: value = scale * (integer - 8) or scale * (integer - 128), the scale in float16. Nor have
// codes, which stand for 16 numbers.
//
// x meets them in whole numbers, as int8 weights do on tiles: every stretch of 256 inputs of a row becomes integers of
// 15 bits and one float32 scale, off by 2^-15 of the stretch's largest number at most. An integer is 128 * high + low,
// both int8. What follows is exact up to the group, then float32, every operation rounded by itself:
//
//   dot = sum of x * integers over 32 inputs                            exact; of x * what they stand for without minima
//   stretch = ((0 + term of group 0) + term of group 1) + ...           term = scale * dot [+ minimum * sum of x]
//   y = ((0 + stretch 0 * its scale) + stretch 1 * its scale) + ... + bias
//
// All levels give the same bits, with any number of rows, in parts or not: vectors and tiles may serve one matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parts.h"
#include "linear/level.h"

namespace kvtrove::groups {

constexpr std::size_t kWidth = 32;           // outputs of a panel
constexpr std::size_t kGroup = 32;           // inputs that share a scale
constexpr std::size_t kStretch = 256;        // inputs of a row of x that share a scale
constexpr std::size_t kGroups = kStretch / kGroup;
constexpr std::size_t kWordsBytes = kWidth * sizeof(std::uint32_t);    // a 32-bit word of every output of a panel
constexpr float kMostX = 127 * 128;

// Codes E2M1 stand for these, doubled, in the place of integers (MXFP4, OCP MX 1.0): a table in a register has them.
constexpr std::int8_t kE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr std::int8_t kMostE2M1 = 12;

// A panel is group after group: scales [32], minima [32], then words [4][32] of 8 inputs each, whose first four are the low
// halves of the bytes, or [8][32] of 4 inputs. One thread reads one run of memory.
constexpr bool is_wide(Form form) { return form == Form::nibbles_f32 || form == Form::bytes_f32; }
constexpr bool has_bytes(Form form) { return form == Form::bytes || form == Form::bytes_f32; }
constexpr bool has_codes(Form form) { return form == Form::codes; }
constexpr bool has_minima(Form form) { return form == Form::nibbles || is_wide(form); }
// The integer that stands for zero in symmetric groups. Codes have zeros of their own.
constexpr std::int32_t zero_of(Form form) {
    return has_bytes(form) ? 128 : form == Form::nibbles_symmetric ? 8 : 0;
}
constexpr std::size_t word_inputs(Form form) { return has_bytes(form) ? 4 : 8; }
constexpr std::size_t most_number(Form form) { return has_bytes(form) ? 255 : 15; }
constexpr std::size_t scale_bytes(Form form) { return is_wide(form) ? sizeof(float) : sizeof(std::uint16_t); }
constexpr std::size_t scales_bytes(Form form) { return kWidth * scale_bytes(form); }
constexpr std::size_t head_bytes(Form form) { return scales_bytes(form) * (has_minima(form) ? 2 : 1); }
constexpr std::size_t group_bytes(Form form) { return head_bytes(form) + kGroup / word_inputs(form) * kWordsBytes; }
constexpr std::size_t panel_bytes(std::size_t inputs, Form form) { return ceil_div(inputs, kGroup) * group_bytes(form); }

// One output of a matrix: integers [whole groups of inputs], scales and minima [groups].
struct Row {
    std::uint8_t* numbers;
    float *scales, *minima;
};

// Output `at` of a panel. `put` rounds scales and minima that are not wide.
void put(std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, Form form);
void get(const std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, Form form);

// Integers, and scales and minima that float16 holds, of `inputs` finite numbers: symmetric ones from the largest of a
// group. Of others, between rounding to the range of a group and rounding to the line that fits what came of it best, the
// nearer one counts. False: beyond what float16 holds.
bool quantise(const float* values, std::size_t inputs, const Row& to, Form form);

// A stretch of a row of x. sums: of the integers of each group. A NaN or an infinity makes the scale NaN, and so every sum
// of the row.
struct alignas(64) Stretch {
    std::int8_t high[kStretch], low[kStretch];
    float sums[kGroups];
    float scale;
};

constexpr std::size_t kMostRows = 128;  // of a part: their sums and x of a stretch stay in L2
constexpr std::size_t kRowsBehind = 16;  // of x, left open: so many may be read behind the last one

// What a level brings: x into stretches [stretches][rows], from float32 and from bf16; the products of a part, of each form;
// y of some rows and a panel from their sums [rows][32], with bias and rounding, without outputs that only fill up the panel.
struct Means {
    void (*pack[2])(const Product& job, std::size_t row, std::size_t row_end, std::size_t rows, Stretch* to);
    void (*run[kForms])(const Product& job, const Stretch* x, std::size_t rows, const Part& part);
    void (*write)(const Product& job, std::size_t row, std::size_t rows, std::size_t panel, const float* totals);
};

const Means& portable_means();
void multiply_portable(const Product& job, std::size_t rows);
#if defined(__x86_64__)
const Means& avx512_means();
void multiply_avx2(const Product& job, std::size_t rows);
void multiply_avx512(const Product& job, std::size_t rows);
#endif

// All of a product, with all threads.
void multiply(const Means& level, const Product& job, std::size_t rows);

}  // namespace kvtrove::groups
