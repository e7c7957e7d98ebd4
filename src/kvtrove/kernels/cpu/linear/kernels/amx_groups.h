// Products of weights in groups on tiles, with the bits of vectors (linear/groups.h). Of every panel, a stretch of 256 inputs is
// unpacked once for all rows: integers of a group are half an operand B, and each plane of 16 rows of x half an operand A,
// as x lies in memory. Forms without minima are unpacked to what their integers stand for, which are signed bytes. Sums of
// a group are whole numbers; scaling them takes longer than the products.
#pragma once

#include "linear/groups.h"
#include "linear/kernels/amx_layout.h"

namespace kvtrove::amx {

// A stretch of a panel: integers as operands B [groups][halves], scales and, where there are any, minima [groups][halves].
struct Unpacked {
    static constexpr std::size_t kRowsOfB = groups::kGroup / 4;
    alignas(64) std::uint8_t numbers[groups::kGroups][kHalves][kRowsOfB * tiles::kRowBytes];
    Floats scales[groups::kGroups][kHalves], minima[groups::kGroups][kHalves];
};

// 16 of the scales or minima at `from`.
[[gnu::always_inline]] KVTROVE_AMX inline Floats lines_at(const std::uint8_t* from, std::size_t half, Form form) {
    from += half * kColumns * groups::scale_bytes(form);
    Floats values;
    if (groups::is_wide(form)) {
        std::memcpy(&values, from, sizeof values);
    } else {
#if defined(KVTROVE_EMULATE_AMX)
        for (std::size_t i = 0; i < kColumns; ++i) {
            std::uint16_t bits;
            std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
            values[i] = float_of_float16(bits);
        }
#else
        Halfwords bits;
        std::memcpy(&bits, from, sizeof bits);
        asm("vcvtph2ps %1, %0" : "=v"(values) : "v"(bits));
#endif
    }
    return values;
}

// What codes in bytes stand for.
[[gnu::always_inline]] KVTROVE_AMX inline Words looked_up(Words codes) {
    alignas(64) std::int8_t bytes[sizeof codes];
#if defined(KVTROVE_EMULATE_AMX)
    std::memcpy(bytes, &codes, sizeof codes);
    for (std::int8_t& byte : bytes) byte = groups::kE2M1[byte];
    std::memcpy(&codes, bytes, sizeof codes);
#else
    for (std::size_t i = 0; i < sizeof codes; ++i) bytes[i] = groups::kE2M1[i % 16];
    Words table;
    std::memcpy(&table, bytes, sizeof table);
    asm("vpshufb %1, %2, %0" : "=v"(codes) : "v"(codes), "v"(table));
#endif
    return codes;
}

typedef std::uint8_t ManyBytes __attribute__((vector_size(sizeof(Words))));

// What integers in bytes stand for, where they have no minimum.
[[gnu::always_inline]] KVTROVE_AMX inline Words around_zero(Words integers, Form form) {
    return reinterpret_cast<Words>(reinterpret_cast<ManyBytes>(integers) - static_cast<std::uint8_t>(groups::zero_of(form)));
}

KVTROVE_AMX inline void unpack(const std::uint8_t* panel, std::size_t groups, Form form, Unpacked& to) {
    constexpr std::uint32_t kLowHalves = 0x0f0f0f0f;
    for (std::size_t g = 0; g < groups; ++g, panel += groups::group_bytes(form)) {
        for (std::size_t half = 0; half < kHalves; ++half) {
            to.scales[g][half] = lines_at(panel, half, form);
            if (groups::has_minima(form)) to.minima[g][half] = lines_at(panel + groups::scales_bytes(form), half, form);
            const std::uint8_t* from = panel + groups::head_bytes(form) + half * tiles::kRowBytes;
            std::uint8_t* rows = to.numbers[g][half];
            for (std::size_t i = 0; i < groups::kGroup / groups::word_inputs(form); ++i, from += groups::kWordsBytes) {
                Words words;
                std::memcpy(&words, from, sizeof words);
                if (groups::has_bytes(form)) {
                    if (!groups::has_minima(form)) words = around_zero(words, form);
                    std::memcpy(rows, &words, sizeof words), rows += sizeof words;
                    continue;
                }
                Words both[] = {words & kLowHalves, words >> 4 & kLowHalves};
                if (groups::has_codes(form)) both[0] = looked_up(both[0]), both[1] = looked_up(both[1]);
                else if (!groups::has_minima(form)) both[0] = around_zero(both[0], form), both[1] = around_zero(both[1], form);
                std::memcpy(rows, both, sizeof both), rows += sizeof both;
            }
        }
    }
}

KVTROVE_AMX inline void configure_groups() {
    tiles::Shapes shapes;
    for (int tile = 0; tile < 4; ++tile) shapes.set(tile, tiles::kRows);
    for (int tile = 4; tile < 6; ++tile) shapes.set(tile, tiles::kRows, groups::kGroup);
    shapes.set(6, Unpacked::kRowsOfB);
    tiles::configure(shapes);
}

// Sums of 16 rows, half a panel and a group, one tile for each plane of x.
struct GroupSums {
    alignas(64) std::int32_t high[kSums], low[kSums];
};

template <int High, bool Minima>
[[gnu::always_inline]] KVTROVE_AMX inline void dot_group(const groups::Stretch* x, const std::uint8_t* numbers, std::size_t g) {
    tiles::zero<High>(), tiles::zero<High + 1>();
    tiles::load<6>(numbers, tiles::kRowBytes);
    tiles::load<4>(x->high + g * groups::kGroup, sizeof *x), tiles::load<5>(x->low + g * groups::kGroup, sizeof *x);
    if constexpr (Minima) tiles::dot_i8_u8<High, 4, 6>(), tiles::dot_i8_u8<High + 1, 5, 6>();
    else tiles::dot_i8<High, 4, 6>(), tiles::dot_i8<High + 1, 5, 6>();
}

template <int High>
[[gnu::always_inline]] KVTROVE_AMX inline void store_group(GroupSums& sums) {
    tiles::store<High>(sums.high, tiles::kRowBytes), tiles::store<High + 1>(sums.low, tiles::kRowBytes);
}

// stretch [16 rows] += the term of group g.
template <bool Minima>
[[gnu::always_inline]] KVTROVE_AMX inline void scale_group(const groups::Stretch* x, const Unpacked& weights, std::size_t half,
                                                           std::size_t g, const GroupSums& sums, Floats* stretch) {
    const Floats scale = weights.scales[g][half];
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kTileRows; ++r) {
        Ints high, low;
        std::memcpy(&high, sums.high + r * kColumns, sizeof high), std::memcpy(&low, sums.low + r * kColumns, sizeof low);
        const Floats dot = scale * __builtin_convertvector((high << 7) + low, Floats);
        if constexpr (Minima) stretch[r] += dot + weights.minima[g][half] * x[r].sums[g];
        else stretch[r] += dot;
    }
}

// totals [rows][32] += a stretch of up to 16 rows and half a panel. While the products of a group run, those of the group
// before it are stored, and the sums of the one before that are scaled: a store waits for its products, and tiles for the
// store. All 16 rows are scaled, because then their sums stay in registers; behind the last row of x lies something.
template <bool Minima>
KVTROVE_AMX inline void add_stretch(const groups::Stretch* x, std::size_t rows, const Unpacked& weights, std::size_t half,
                                    std::size_t groups, float* totals) {
    GroupSums sums[2];
    Floats stretch[kTileRows] = {};
    dot_group<0, Minima>(x, weights.numbers[0][half], 0);
    for (std::size_t g = 0; g < groups; g += 2) {  // of two, the first has tiles 0 and 1, the second 2 and 3
        if (g + 1 < groups) dot_group<2, Minima>(x, weights.numbers[g + 1][half], g + 1);
        store_group<0>(sums[0]);
        if (g) scale_group<Minima>(x, weights, half, g - 1, sums[1], stretch);
        if (g + 2 < groups) dot_group<0, Minima>(x, weights.numbers[g + 2][half], g + 2);
        if (g + 1 < groups) store_group<2>(sums[1]);
        scale_group<Minima>(x, weights, half, g, sums[0], stretch);
    }
    if (groups % 2 == 0) scale_group<Minima>(x, weights, half, groups - 1, sums[1], stretch);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kTileRows; ++r, totals += kWidth) {
        if (r >= rows) break;
        Floats total;
        std::memcpy(&total, totals, sizeof total);
        total += stretch[r] * x[r].scale;
        std::memcpy(totals, &total, sizeof total);
    }
}

// What packs x, and serves few rows.
inline const groups::Means& vectors() {
#if defined(KVTROVE_EMULATE_AMX)
    return groups::portable_means();
#else
    return groups::avx512_means();
#endif
}

// Rows and panels of a part. x: [stretches][all rows], and as many as a tile has behind the last one.
KVTROVE_AMX inline void run_groups(const Product& job, const groups::Stretch* x, std::size_t all_rows, const Part& part) {
    alignas(64) float totals[groups::kMostRows * kWidth];
    Unpacked weights;
    const std::size_t rows = part.row_end - part.row, groups = ceil_div(job.inputs, groups::kGroup);
    const std::size_t bytes = groups::group_bytes(job.form);
    const auto write = vectors().write;
    configure_groups();
    for (std::size_t panel = part.panel; panel < part.panel_end; ++panel) {
        std::fill_n(totals, rows * kWidth, 0.0f);
        const std::uint8_t* at = job.weights + panel * job.panel_bytes;
        for (std::size_t first = 0; first < groups; first += groups::kGroups, at += groups::kGroups * bytes) {
            const std::size_t count = std::min(groups::kGroups, groups - first);
            for (std::size_t line = 0; line < count * bytes; line += kCacheLine) {
                __builtin_prefetch(at + groups::kGroups * bytes + line, 0, 2);
            }
            unpack(at, count, job.form, weights);
            const groups::Stretch* of = x + first / groups::kGroups * all_rows + part.row;
            for (std::size_t row = 0; row < rows; row += kTileRows) {
                for (std::size_t half = 0; half < kHalves; ++half) {
                    const auto add = groups::has_minima(job.form) ? add_stretch<true> : add_stretch<false>;
                    add(of + row, std::min(kTileRows, rows - row), weights, half, count,
                        totals + row * kWidth + half * kColumns);
                }
            }
        }
        write(job, part.row, rows, panel, totals);
    }
    tiles::release();
}

// Few rows are sooner done by vectors.
inline void multiply_groups(const Product& job, std::size_t rows) {
    constexpr std::size_t kFewRows = 8;
    if (rows <= kFewRows) return groups::multiply(vectors(), job, rows);
    groups::Means means = vectors();
    std::fill_n(means.run, kForms, run_groups);
    groups::multiply(means, job, rows);
}

}  // namespace kvtrove::amx
