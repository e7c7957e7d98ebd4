// Products of int8 weights on tiles, in whole numbers: every stretch of 256 inputs of a row of x becomes integers of 15
// bits and one float32 scale, off by 2^-15 of the stretch's largest number at most. An integer is 128 * high + low, both
// int8: two products of bytes, added up exactly in 32 bits. Up to 8 rows, both planes are rows of one operand, and the
// second product is free. The stretches' sums are added in float32, in their order, whatever the number of rows.
#pragma once

#include "linear/kernels/amx_bf16.h"

namespace kvtrove::amx {

constexpr std::size_t kStretch = 256;  // 256 * 127 * 127 * 128 < 2^31; shorter ones store sums more often
constexpr std::size_t kStretchSteps = kStretch / kByteStep;
constexpr std::size_t kPlanes = 2;
constexpr std::size_t kMostStretches = 4;  // of a block of inputs
constexpr float kMostX = 127 * 128;
constexpr std::size_t kStackedRows = 8;  // whose planes fit into one operand

// x in operands A: steps of 64 inputs, parts are its planes; scales [tiles of 16 rows][stretches][16].
struct ByteX {
    PackedX planes;
    std::size_t stretches;
    const float* scales;
};

// One stretch of a row into its two planes, `step_bytes` from step to step. A NaN or an infinity makes the scale NaN, and
// so every sum of the row.
template <class T>
KVTROVE_AMX float pack_stretch(const T* x, std::size_t count, std::uint8_t* high, std::size_t tile, std::size_t step_bytes) {
    alignas(64) float values[kStretch];
    std::fill(values + count, values + kStretch, 0.0f);
    for (std::size_t i = 0; i < count; ++i) {
        if constexpr (sizeof(T) == 2) values[i] = float_of_bfloat16(x[i]);
        else values[i] = x[i];
    }
    Floats line, most = {}, poison = {};
    for (std::size_t i = 0; i < kStretch; i += kColumns) {
        std::memcpy(&line, values + i, sizeof line);
        const Floats size = line < 0 ? -line : line;
        most = size > most ? size : most;
        poison += line * 0.0f;
    }
    float largest = 1e-30f, bad = 0;
    for (std::size_t i = 0; i < kColumns; ++i) largest = std::max(largest, most[i]), bad += poison[i];
    const float factor = kMostX / largest;
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    for (std::size_t i = 0; i < ceil_div(count, kByteStep) * kByteStep; i += kColumns) {
        std::memcpy(&line, values + i, sizeof line);
        const Ints whole = reinterpret_cast<Ints>(line * factor + magic) - 0x4B400000;
        const Ints top = (whole + 64) >> 7;
        const Bytes planes[] = {__builtin_convertvector(top, Bytes), __builtin_convertvector(whole - (top << 7), Bytes)};
        std::uint8_t* to = high + i / kByteStep * step_bytes + i % kByteStep;
        std::memcpy(to, planes, sizeof *planes), std::memcpy(to + tile, planes + 1, sizeof *planes);
    }
    return largest / kMostX + bad;
}

inline std::size_t bytes_of_planes(const Product& job, std::size_t rows) {
    const std::size_t row_tiles = ceil_div(rows, kTileRows), steps = ceil_div(job.inputs, kByteStep);
    return row_tiles * steps * kPlanes * std::min(rows, kTileRows) * tiles::kRowBytes +
           row_tiles * ceil_div(job.inputs, kStretch) * kTileRows * sizeof(float);
}

// `to`: as many bytes as bytes_of_planes.
template <class T>
ByteX pack_bytes(const Product& job, std::size_t rows, std::uint8_t* to) {
    const std::size_t row_tiles = ceil_div(rows, kTileRows), tile_rows = std::min(rows, kTileRows);
    const PackedX planes{to, ceil_div(job.inputs, kByteStep), kPlanes, tile_rows * tiles::kRowBytes};
    const std::size_t stretches = ceil_div(job.inputs, kStretch), step_bytes = kPlanes * planes.tile;
    auto* scales = reinterpret_cast<float*>(to + row_tiles * planes.row_tile_bytes());
    const auto* x = static_cast<const T*>(job.x);
    constexpr std::size_t kCost = 16;  // multiply-adds that take as long as packing a number
    parallel_ranges(row_tiles * stretches, threads_for(rows * job.inputs * kCost), [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row_tile = i / stretches, stretch = i % stretches, k = stretch * kStretch;
            const std::size_t count = std::min(kStretch, job.inputs - k);
            auto* planes_at = to + row_tile * planes.row_tile_bytes() + stretch * kStretchSteps * step_bytes;
            for (std::size_t r = 0; r < tile_rows; ++r) {
                const std::size_t row = row_tile * kTileRows + r;
                scales[i * kTileRows + r] =
                    pack_stretch(x + std::min(row, rows - 1) * job.inputs + k, row < rows ? count : 0,
                                 planes_at + r * tiles::kRowBytes, planes.tile, step_bytes);
            }
        }
    });
    return {planes, stretches, scales};
}

// Sums of a stretch, tiles [half of the panel][plane], that are added to those of the stretches before it; after the last
// one they become rows of y. A few lines at a time, as in Waiting.
struct WaitingStretch {
    const std::int32_t *high, *low;  // of the first half of the panel
    const float* scales;
    float* totals;  // [rows][32]
    bool first, last;
    Output output;
    std::size_t row, line, rows;

    [[gnu::always_inline]] KVTROVE_AMX void some(std::size_t lines) {
        const std::size_t begin = line, end = std::min(rows, line + lines);
        line = end;
        if (last) return finish(begin, end);
        float* to = totals + begin * kWidth;
        for (std::size_t i = begin; i < end; ++i, to += kWidth) {
            for (std::size_t half = 0; half < kHalves; ++half) {
                const Floats value = total(i, half);
                std::memcpy(to + half * kColumns, &value, sizeof value);
            }
        }
    }
    KVTROVE_AMX void all() { some(rows); }

  private:
    [[gnu::always_inline]] KVTROVE_AMX Floats total(std::size_t i, std::size_t half) const {
        const std::size_t at = half * kPlanes * kSums + i * kColumns;
        Ints top, rest;
        std::memcpy(&top, high + at, sizeof top), std::memcpy(&rest, low + at, sizeof rest);
        const Floats value = __builtin_convertvector((top << 7) + rest, Floats) * scales[i];
        if (first) return value;
        Floats before;
        std::memcpy(&before, totals + i * kWidth + half * kColumns, sizeof before);
        return before + value;
    }
    KVTROVE_AMX __attribute__((noinline)) void finish(std::size_t begin, std::size_t end) const {
        for (std::size_t i = begin; i < end; ++i) output.put(row + i, i, total(i, 0), total(i, 1));
    }
};

// Tiles 0-3: sums [half][plane]; 4, 5: planes of x; 6, 7: weights. Up to 8 rows both planes are in 4, their sums in 0 and 2.
KVTROVE_AMX inline void configure_bytes(std::size_t rows) {
    const int tile_rows = static_cast<int>(std::min(rows, kTileRows)), planes = rows <= kStackedRows ? kPlanes : 1;
    tiles::Shapes shapes;
    for (int tile = 0; tile < 6; ++tile) shapes.set(tile, planes * tile_rows);
    shapes.set(6, tiles::kRows), shapes.set(7, tiles::kRows);
    tiles::configure(shapes);
}

class ByteRows {
  public:
    ByteRows(const Product& job, const ByteX& x, std::size_t rows) : job_(job), x_(x), rows_(rows) {}

    // Panels begin .. end of y, for up to 32 rows: weights pass by once.
    KVTROVE_AMX void few(std::size_t begin, std::size_t end) {
        configure_bytes(rows_);
        for (std::size_t panel = begin; panel < end; ++panel) {
            const Sources from(job_, panel);
            for (std::size_t i = 0; i < from.count; ++i) {
                const std::uint8_t* weights = stored(job_, from.panels[i], 0);
                for (std::size_t stretch = 0; stretch < x_.stretches; ++stretch) {
                    const std::uint8_t* at = weights + stretch * kStretchSteps * kStepBytes;
                    for (std::size_t tile = 0; tile * kTileRows < rows_; ++tile) {
                        multiply(from.panels[i], tile, stretch, at, at + kAhead, tile ? 0 : kStepBytes / kCacheLine,
                                 totals_[tile]);
                    }
                }
            }
        }
        waiting_.all();
        tiles::release();
    }

    static std::size_t blocks(std::size_t stretches) { return ceil_div(stretches, kMostStretches); }
    // Numbers of `kept` in `many` for parts of so many tiles of 16 rows.
    static std::size_t kept(std::size_t stretches, std::size_t row_tiles) {
        return blocks(stretches) > 1 ? kBlockPanels * row_tiles * kTileRows * kWidth : 0;
    }

    // More rows, tiles and panels of a part: block after block of inputs, so that x of one stays in L2, a panel of it in L1.
    KVTROVE_AMX void many(const Part& part, float* kept) {
        configure_bytes(rows_);
        const std::size_t blocks = ByteRows::blocks(x_.stretches);
        for (std::size_t block = 0; block < blocks; ++block) {
            const std::size_t first = x_.stretches * block / blocks, end = x_.stretches * (block + 1) / blocks;
            for (std::size_t panel = part.panel; panel < part.panel_end; ++panel) {
                for (std::size_t tile = part.row; tile < part.row_end; ++tile) {
                    multiply_block(part, panel, tile, first, end, blocks > 1 ? kept : nullptr);
                }
            }
        }
        waiting_.all();
        tiles::release();
        fence();
    }

  private:
    KVTROVE_AMX void multiply_block(const Part& part, std::size_t panel, std::size_t tile, std::size_t first,
                                    std::size_t end, float* kept) {
        const Sources from(job_, panel);
        const std::size_t tiles = part.row_end - part.row, lines = ceil_div(kStepBytes / kCacheLine, tiles);
        const std::size_t skipped = (tile - part.row) * lines;  // of the lines of the next panel that come into L2 meanwhile
        const bool none = panel + 1 == part.panel_end || skipped >= kStepBytes / kCacheLine;
        for (std::size_t i = 0; i < from.count; ++i) {
            const std::uint8_t* weights = stored(job_, from.panels[i], 0);
            const std::uint8_t* next = stored(job_, from.panels[i] + 1, 0) + skipped * kCacheLine;
            const std::size_t place = ((panel - part.panel) * from.count + i) * tiles + tile - part.row;
            float* totals = kept ? kept + place * kTileRows * kWidth : totals_[tile % 2];
            for (std::size_t stretch = first; stretch < end; ++stretch) {
                const std::size_t at = stretch * kStretchSteps * kStepBytes;
                multiply(from.panels[i], tile, stretch, weights + at, next + at, none ? 0 : lines, totals);
            }
        }
    }

    // One stretch of 16 rows and a panel. What comes into L2 meanwhile: `lines` from `next` on for every step.
    KVTROVE_AMX void multiply(std::size_t panel, std::size_t row_tile, std::size_t stretch, const std::uint8_t* weights,
                              const std::uint8_t* next, std::size_t lines, float* totals) {
        const bool stacked = rows_ <= kStackedRows;
        std::int32_t* sums = sums_[turn_ ^= 1];
        const std::size_t first = stretch * kStretchSteps, steps = std::min(kStretchSteps, x_.planes.steps - first);
        stacked ? dot<true>(row_tile, first, steps, weights, next, lines, sums)
                : dot<false>(row_tile, first, steps, weights, next, lines, sums);
        const std::size_t rows = std::min(kTileRows, rows_ - row_tile * kTileRows);
        const bool last = stretch + 1 == x_.stretches;
        waiting_.high = sums, waiting_.low = sums + (stacked ? rows * kColumns : kSums);
        waiting_.scales = x_.scales + (row_tile * x_.stretches + stretch) * kTileRows;
        waiting_.totals = totals, waiting_.first = stretch == 0, waiting_.last = last;
        waiting_.row = row_tile * kTileRows, waiting_.line = 0, waiting_.rows = rows;
        if (last) waiting_.output = Output(job_, panel, gates_[row_tile % 2]);
    }

    template <bool Stacked>
    KVTROVE_AMX void dot(std::size_t row_tile, std::size_t step, std::size_t steps, const std::uint8_t* weights,
                         const std::uint8_t* next, std::size_t lines, std::int32_t* sums) {
        constexpr std::size_t kSome = Stacked ? kStackedRows / 4 : kTileRows / 4;  // lines after half a step
        const std::uint8_t* x = x_.planes.find(row_tile, step);
        const std::size_t tile = x_.planes.tile;
        tiles::zero<0>(), tiles::zero<2>();
        if constexpr (!Stacked) tiles::zero<1>(), tiles::zero<3>();
        for (std::size_t i = 0; i < steps; ++i, x += kPlanes * tile, weights += kStepBytes, next += kStepBytes) {
            ask(next, lines);
            tiles::load<4>(x, tiles::kRowBytes);
            tiles::load<6>(weights, tiles::kRowBytes);
            tiles::dot_i8<0, 4, 6>();
            if constexpr (!Stacked) {
                tiles::load<5>(x + tile, tiles::kRowBytes);
                tiles::dot_i8<1, 5, 6>();
            }
            waiting_.some(kSome);
            tiles::load<7>(weights + kTile, tiles::kRowBytes);
            tiles::dot_i8<2, 4, 7>();
            if constexpr (!Stacked) tiles::dot_i8<3, 5, 7>();
            waiting_.some(kSome);
        }
        waiting_.all();
        tiles::store<0>(sums, tiles::kRowBytes), tiles::store<2>(sums + kPlanes * kSums, tiles::kRowBytes);
        if constexpr (!Stacked) {
            tiles::store<1>(sums + kSums, tiles::kRowBytes);
            tiles::store<3>(sums + (kPlanes + 1) * kSums, tiles::kRowBytes);
        }
    }

    const Product& job_;
    const ByteX& x_;
    std::size_t rows_;
    int turn_ = 0;
    WaitingStretch waiting_ = {};
    alignas(64) std::int32_t sums_[2][kHalves * kPlanes * kSums];
    alignas(64) float totals_[2][kTileRows * kWidth];
    alignas(64) float gates_[2][kTileRows * kWidth];
};

}  // namespace kvtrove::amx
