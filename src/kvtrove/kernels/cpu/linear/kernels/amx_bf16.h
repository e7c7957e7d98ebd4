// Products of bf16 weights on tiles. All numbers of rows take the same products in the same order, 32 inputs after 32
// inputs into float32 sums that stay in tiles, or are stored and loaded again as they are: a row gives the same bits in
// every batch. float32 x is split into three bf16 numbers, exactly: three products into the same sum.
#pragma once

#include "linear/kernels/amx_output.h"

namespace kvtrove::amx {

constexpr std::size_t kGroupRows = 2 * kTileRows;  // whose sums are in tiles at once
constexpr std::size_t kBytesOfX = 1150 << 10;      // of x that is one block of inputs and stays in L2
constexpr std::size_t kMostSteps = 80;             // of a block, where there are several
constexpr std::size_t kPause = 4;                  // steps
constexpr std::size_t kBlockPanels = 16;           // of a part, where there are several blocks: the sums wait in L2
// Weights are asked for so many bytes before they are needed: the processor's own prefetching starts anew in every panel,
// and tile loads alone keep too few lines under way.
constexpr std::size_t kAhead = 2048, kAheadOfMore = 4096;  // up to 16 rows; up to 32

KVTROVE_AMX inline void ask(const std::uint8_t* weights, std::size_t lines) {
    for (std::size_t i = 0; i < lines; ++i) __builtin_prefetch(weights + i * kCacheLine, 0, 2);
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
    if (count == kStep) {  // a size that is known becomes one instruction
        std::memcpy(to, x, kStep * 2);
        return;
    }
    std::memset(to, 0, kStep * 2);
    std::memcpy(to, x, count * 2);
}

template <class T>
KVTROVE_AMX void pack_tile(const T* x, std::size_t inputs, std::size_t rows, std::size_t count, std::uint8_t* to,
                           const PackedX& packed) {
    const std::size_t tile_rows = packed.tile / tiles::kRowBytes;
    if (rows < tile_rows) std::memset(to, 0, packed.parts * packed.tile);
    for (std::size_t r = 0; r < std::min(rows, tile_rows); ++r) {
        pack_row(x + r * inputs, count, to + r * tiles::kRowBytes, packed.tile);
    }
}

// `to`: as many bytes as bytes_of_x.
template <class T>
PackedX pack(const Product& job, std::size_t rows, std::uint8_t* to) {
    const PackedX packed{to, ceil_div(job.inputs, kStep), sizeof(T) == 2 ? 1u : 3u,
                         std::min(rows, kTileRows) * tiles::kRowBytes};
    const auto* x = static_cast<const T*>(job.x);
    constexpr std::size_t kCost = 16;  // multiply-adds that take as long as packing a number
    const std::size_t threads = threads_for(rows * job.inputs * kCost);
    parallel_ranges(ceil_div(rows, kTileRows) * packed.steps, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = i / packed.steps * kTileRows, k = i % packed.steps * kStep;
            pack_tile(x + row * job.inputs + k, job.inputs, rows - row, std::min(kStep, job.inputs - k),
                      to + i * packed.parts * packed.tile, packed);
        }
    });
    return packed;
}

inline std::size_t bytes_of_x(const Product& job, std::size_t rows) {
    const std::size_t parts = job.type == Float::bf16 ? 1 : 3;
    return ceil_div(rows, kTileRows) * ceil_div(job.inputs, kStep) * parts * std::min(rows, kTileRows) * tiles::kRowBytes;
}

// Shapes of the tiles for up to 32 rows: 0-3 are sums, the others operands. Rows beyond those of x would cost time.
KVTROVE_AMX inline void configure(std::size_t rows, int parts) {
    const int first = static_cast<int>(std::min(rows, kTileRows)), second = static_cast<int>(rows) - first;
    tiles::Shapes shapes;
    for (int tile = 0; tile < tiles::kTiles; ++tile) shapes.set(tile, tiles::kRows);
    if (second) {  // `dot_rows`
        shapes.set(2, second), shapes.set(3, second), shapes.set(5, second);
    } else {       // `dot_column`
        for (int tile = 0; tile < 4 + parts; ++tile) shapes.set(tile, first);
    }
    tiles::configure(shapes);
}

// Sums in memory that become rows of y a few lines at a time, between products that leave vectors idle. Those of up to
// 32 rows and 32 outputs are tiles [row tile][half of the panel].
struct Waiting {
    const Output* output = nullptr;
    const float* sums = nullptr;
    std::size_t row = 0, line = 0, rows = 0;  // the first one's number in y; lines that are done; all of them

    [[gnu::always_inline]] KVTROVE_AMX void some(std::size_t lines) {
        for (const std::size_t end = std::min(rows, line + lines); line < end; ++line) {
            const float* at = sums + (line / kTileRows * kHalves) * kSums + line % kTileRows * kColumns;
            Floats low, high;
            std::memcpy(&low, at, sizeof low), std::memcpy(&high, at + kSums, sizeof high);
            output->put(row + line, line, low, high);
        }
    }
    KVTROVE_AMX void all() { some(rows); }
};

// sums [16 rows, 16 outputs] of tile C += x . one tile of weights. Every column has its own sums and, as far as there are
// registers, its own weights: a product waits 52 cycles for the one before it.
template <int C, int Parts>
[[gnu::always_inline]] KVTROVE_AMX inline void dot_column(const std::uint8_t* weights) {
    constexpr int B = Parts == 1 ? 5 + C % 3 : 7;
    ask(weights + kAhead, kTile / kCacheLine);
    tiles::load<B>(weights, tiles::kRowBytes);
    tiles::dot_bf16<C, 4, B>();
    if constexpr (Parts == 3) tiles::dot_bf16<C, 5, B>(), tiles::dot_bf16<C, 6, B>();
}

// Up to 16 rows, one panel or two that lie `stride` bytes apart: sums are tiles [panel][half].
template <int Parts, int Panels>
KVTROVE_AMX void dot_few(const PackedX& x, const std::uint8_t* panel, std::size_t stride, float* sums) {
    const std::uint8_t* rows = x.at;
    tiles::zero<0>(), tiles::zero<1>();
    if constexpr (Panels == 2) tiles::zero<2>(), tiles::zero<3>();
    for (std::size_t i = 0; i < x.steps; ++i, rows += Parts * x.tile, panel += kStepBytes) {
        tiles::load<4>(rows, tiles::kRowBytes);
        if constexpr (Parts == 3) {
            tiles::load<5>(rows + x.tile, tiles::kRowBytes);
            tiles::load<6>(rows + 2 * x.tile, tiles::kRowBytes);
        }
        dot_column<0, Parts>(panel);
        dot_column<1, Parts>(panel + kTile);
        if constexpr (Panels == 2) {
            dot_column<2, Parts>(panel + stride);
            dot_column<3, Parts>(panel + stride + kTile);
        }
    }
    tiles::store<0>(sums, tiles::kRowBytes), tiles::store<1>(sums + kSums, tiles::kRowBytes);
    if constexpr (Panels == 2) {
        tiles::store<2>(sums + 2 * kSums, tiles::kRowBytes), tiles::store<3>(sums + 3 * kSums, tiles::kRowBytes);
    }
}

// One block of inputs of up to 32 rows and one panel. What comes into L2 meanwhile: `lines` from `ask` on for every step.
struct Block {
    const std::uint8_t *x, *weights, *ask;
    std::size_t steps, lines;
    const float* before;  // sums of the blocks before it; null: this is the first one
    float* sums;          // tiles [row tile][half]
};

template <int Parts, bool TwoRowTiles>
KVTROVE_AMX void dot_block(const PackedX& packed, Block block, Waiting& waiting) {
    const std::size_t tile = packed.tile, second = packed.row_tile_bytes();
    // sums that were just stored are slow to load: the first steps leave them alone; the others share them evenly
    const std::size_t pause = std::min(kPause, block.steps / 2), sharing = block.steps - pause;
    std::size_t due = 0;  // lines, times `sharing`
    if (const float* before = block.before) {
        tiles::load<0>(before, tiles::kRowBytes), tiles::load<1>(before + kSums, tiles::kRowBytes);
        tiles::load<2>(before + 2 * kSums, tiles::kRowBytes), tiles::load<3>(before + 3 * kSums, tiles::kRowBytes);
    } else {
        tiles::zero<0>(), tiles::zero<1>(), tiles::zero<2>(), tiles::zero<3>();
    }
    for (std::size_t i = 0; i < block.steps; ++i, block.weights += kStepBytes, block.ask += kStepBytes) {
        ask(block.ask, block.lines);
#pragma GCC unroll 3
        for (int part = 0; part < Parts; ++part, block.x += tile) {
            tiles::load<4>(block.x, tiles::kRowBytes);
            if (part == 0) tiles::load<6>(block.weights, tiles::kRowBytes);
            tiles::dot_bf16<0, 4, 6>();
            if (part == 0) tiles::load<7>(block.weights + kTile, tiles::kRowBytes);
            tiles::dot_bf16<1, 4, 7>();
            if constexpr (TwoRowTiles) {
                tiles::load<5>(block.x + second, tiles::kRowBytes);
                tiles::dot_bf16<2, 5, 6>();
                tiles::dot_bf16<3, 5, 7>();
            }
        }
        if (i < pause) continue;
        for (due += waiting.rows; due >= sharing; due -= sharing) waiting.some(1);
    }
    waiting.all();
    tiles::store<0>(block.sums, tiles::kRowBytes), tiles::store<1>(block.sums + kSums, tiles::kRowBytes);
    tiles::store<2>(block.sums + 2 * kSums, tiles::kRowBytes), tiles::store<3>(block.sums + 3 * kSums, tiles::kRowBytes);
}

inline const std::uint8_t* stored(const Product& job, std::size_t panel, std::size_t step) {
    return job.weights + panel * job.panel_bytes + step * kStepBytes;
}

// Panels begin .. end of y, for up to 32 rows: weights pass by once.
template <int Parts>
KVTROVE_AMX void few_rows(const Product& job, const PackedX& x, std::size_t rows, std::size_t begin, std::size_t end) {
    constexpr std::size_t kFewRows = 4;  // up to so many, two panels at once take longer than one after the other
    alignas(64) float sums[4 * kSums];
    alignas(64) float gates[kGroupRows * kWidth];
    configure(rows, Parts);
    for (std::size_t panel = begin; panel < end;) {
        const Sources from(job, panel);
        const bool two = rows > kFewRows && rows <= kTileRows && (job.gated || panel + 2 <= end);
        const std::size_t next = job.gated ? from.panels[1] : panel + 1;
        if (two) dot_few<Parts, 2>(x, stored(job, panel, 0), (next - panel) * job.panel_bytes, sums);
        for (std::size_t i = 0; i < std::max<std::size_t>(from.count, two ? 2 : 1); ++i) {
            const std::size_t source = i ? next : panel;
            const float* at = two ? sums + 2 * i * kSums : sums;
            const Output output(job, source, gates);
            Waiting waiting{&output, at, 0, 0, rows};
            if (rows > kTileRows) {
                const std::uint8_t* weights = stored(job, source, 0);
                Waiting none;
                dot_block<Parts, true>(x, {x.at, weights, weights + kAheadOfMore, x.steps, kStepBytes / kCacheLine, nullptr,
                                           sums}, none);
            } else if (!two) {
                dot_few<Parts, 1>(x, stored(job, source, 0), 0, sums);
            }
            waiting.all();
        }
        panel += two && !job.gated ? 2 : 1;
    }
    tiles::release();
}

// More rows: all groups of 32 rows of a part take a block of a panel before the next panel comes. Its block of inputs is
// long, because what stays in L1 does not repay loading and storing sums more often: x and the panel come from L2. Sums of
// the last block go through a buffer in L1, from where they become y while tiles multiply the next group.
template <int Parts>
class ManyRows {
  public:
    ManyRows(const Product& job, const PackedX& x, std::size_t rows, const Part& part, float* sums)
        : job_(job), x_(x), rows_(rows), part_(part), sums_(sums), blocks_(blocks(x.steps, rows)) {}

    static std::size_t blocks(std::size_t steps, std::size_t rows) {
        return rows * steps * tiles::kRowBytes <= kBytesOfX ? 1 : std::max(ceil_div(steps, kMostSteps), std::size_t{2});
    }
    // Numbers of `sums`.
    static std::size_t sums(std::size_t steps, std::size_t rows) {
        return blocks(steps, rows) > 1 ? kBlockPanels * ceil_div(rows, kGroupRows) * 4 * kSums : 0;
    }

    KVTROVE_AMX void run() {
        configure(kGroupRows, Parts);
        for (std::size_t block = 0; block < blocks_; ++block) {
            for (std::size_t panel = part_.panel; panel < part_.panel_end; ++panel) {
                const Sources from(job_, panel);
                for (std::size_t i = 0; i < from.count; ++i) outputs_[panel % 2][i] = Output(job_, from.panels[i], gates_);
                for (std::size_t group = part_.row; group < part_.row_end; ++group) multiply(block, panel, from, group);
            }
        }
        waiting_.all();
        tiles::release();
        fence();
    }

  private:
    std::size_t step(std::size_t block) const { return x_.steps * block / blocks_; }

    KVTROVE_AMX void multiply(std::size_t block, std::size_t panel, const Sources& from, std::size_t group) {
        const std::size_t groups = part_.row_end - part_.row, row = group * kGroupRows, first = step(block);
        const std::size_t lines = ceil_div(kStepBytes / kCacheLine, groups), skipped = (group - part_.row) * lines;
        const bool last_panel = panel + 1 == part_.panel_end, last = block + 1 == blocks_;
        for (std::size_t i = 0; i < from.count; ++i) {
            const std::size_t source = from.panels[i];
            const std::size_t place = ((panel - part_.panel) * from.count + i) * groups + group - part_.row;
            float* kept = sums_ + place * 4 * kSums;
            float* sums = last ? hot_[turn_ ^= 1] : kept;
            const std::uint8_t* next = last_panel ? stored(job_, source - (panel - part_.panel), step(block + 1))
                                                  : stored(job_, source + 1, first);
            const bool none = last_panel && last;
            const Block work{x_.find(2 * group, first), stored(job_, source, first),
                             next + skipped * kCacheLine, step(block + 1) - first,
                             none || skipped >= kStepBytes / kCacheLine ? 0 : lines, block ? kept : nullptr, sums};
            if (row + kTileRows < rows_) {
                dot_block<Parts, true>(x_, work, waiting_);
            } else {
                dot_block<Parts, false>(x_, work, waiting_);
            }
            if (last) waiting_ = {&outputs_[panel % 2][i], sums, row, 0, std::min(kGroupRows, rows_ - row)};
        }
    }

    const Product& job_;
    const PackedX& x_;
    std::size_t rows_;
    const Part& part_;  // rows: in groups of 32
    float* sums_;
    std::size_t blocks_;
    Output outputs_[2][2];  // of this panel and the one before it, whose last rows wait
    Waiting waiting_;
    int turn_ = 0;
    alignas(64) float hot_[2][4 * kSums];
    alignas(64) float gates_[kGroupRows * kWidth];
};

}  // namespace kvtrove::amx
