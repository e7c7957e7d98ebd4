// Linear layers on AMX tiles: y = x * W^T + bias, with bf16 or int8 weights and float32 or bf16 x.
//
// All numbers of rows take the same products in the same order, 32 inputs after 32 inputs into float32 sums that stay in
// tiles or are stored and loaded again as they are: a row gives the same bits in every batch. A product of 1 KiB of weights
// takes 16 cycles at most, memory gives a core about 6 bytes in a cycle, so there is no reason for another kernel when
// there is one row. float32 x is split into three bf16 numbers, exactly: three products into the same sum.
#if defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)

#include "linear_amx_tiles.h"
#include "linear_memory.h"
#include "linear_parts.h"

namespace kvtrove {

namespace amx {

constexpr std::size_t kMostRows = 512;                   // that are packed at a time
constexpr std::size_t kGroupRows = 2 * kTileRows;        // whose sums are in tiles at once
constexpr std::size_t kMostGroups = 8, kMostPanels = 8;  // of a task with many rows: the sums take an eighth of L2
constexpr std::size_t kFewSteps = 4;                     // of int8 weights that become bf16 at once

// Inputs of a block when there are many rows, in steps. L1 holds 32 rows of x (12 or 18 KiB), two panels (24 or 12 KiB)
// and the sums of both (8 KiB); every block costs loading and storing the sums.
template <int Parts>
constexpr std::size_t kBlock = Parts == 1 ? 6 : 3;

// x in operands A: [tiles of 16 rows][steps][parts], tiles of `tile` bytes.
struct PackedX {
    const std::uint8_t* at;
    std::size_t steps, tile;

    template <int Parts>
    const std::uint8_t* find(std::size_t row_tile, std::size_t step) const {
        return at + (row_tile * steps + step) * Parts * tile;
    }
};

template <class T>
KVTROVE_AMX void pack_tile(const T* x, std::size_t inputs, std::size_t rows, std::size_t count, std::uint8_t* to,
                           std::size_t tile) {
    constexpr std::size_t kParts = sizeof(T) == 2 ? 1 : 3;
    const std::size_t tile_rows = tile / tiles::kRowBytes;
    if (rows < tile_rows) std::memset(to, 0, kParts * tile);
    for (std::size_t r = 0; r < std::min(rows, tile_rows); ++r) {
        pack_row(x + r * inputs, count, to + r * tiles::kRowBytes, tile);
    }
}

// Once per call, shared by all threads: rows whose stride is a multiple of 4096 bytes would push each other out of L1, and
// a tile could not end where a row does.
template <class T>
PackedX pack(const Product& job, std::size_t rows) {
    const std::size_t steps = ceil_div(job.inputs, kStep), row_tiles = ceil_div(rows, kTileRows);
    const std::size_t tile = std::min(rows, kTileRows) * tiles::kRowBytes, parts = sizeof(T) == 2 ? 1 : 3;
    std::uint8_t* to = scratch(row_tiles * steps * parts * tile);
    const auto* x = static_cast<const T*>(job.x);
    constexpr std::size_t kCost = 16;  // multiply-adds that take as long as packing a number
    const std::size_t threads = threads_for(rows * job.inputs * kCost);
    parallel_ranges(row_tiles * steps, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = i / steps * kTileRows, k = i % steps * kStep;
            pack_tile(x + row * job.inputs + k, job.inputs, rows - row, std::min(kStep, job.inputs - k),
                      to + i * parts * tile, tile);
        }
    });
    return {to, steps, tile};
}

// Shapes of the tiles for up to 32 rows: 0-3 are sums, the others operands. Rows beyond those of x would cost time.
KVTROVE_AMX void configure(std::size_t rows, int parts) {
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

template <bool Stream>
KVTROVE_AMX inline void ask(const std::uint8_t* weights, std::size_t bytes) {
    if constexpr (Stream) {
        for (std::size_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(weights + kAhead + i);
    }
}

// sums [16 rows, 16 outputs] of tile C += x . one tile of weights. Every column has its own sums and, as far as there are
// registers, its own weights: a product waits 52 cycles for the one before it.
template <int C, int Parts, bool Stream>
KVTROVE_AMX inline void dot_column(const std::uint8_t* weights) {
    constexpr int B = Parts == 1 ? 5 + C % 3 : 7;
    ask<Stream>(weights, kTile);
    tiles::load<B>(weights, tiles::kRowBytes);
    tiles::dot_bf16<C, 4, B>();
    if constexpr (Parts == 3) tiles::dot_bf16<C, 5, B>(), tiles::dot_bf16<C, 6, B>();
}

// sums [32 rows, 32 outputs] of tiles 0-3 += x . a step of a panel: four loads for four products.
template <int Parts, bool Stream>
KVTROVE_AMX inline void dot_rows(const std::uint8_t* x, std::size_t second, std::size_t tile,
                                 const std::uint8_t* weights) {
    ask<Stream>(weights, kLines);
    tiles::load<6>(weights, tiles::kRowBytes);
    tiles::load<7>(weights + kTile, tiles::kRowBytes);
#pragma GCC unroll 3
    for (int part = 0; part < Parts; ++part, x += tile) {
        tiles::load<4>(x, tiles::kRowBytes);
        tiles::dot_bf16<0, 4, 6>();
        tiles::dot_bf16<1, 4, 7>();
        tiles::load<5>(x + second, tiles::kRowBytes);
        tiles::dot_bf16<2, 5, 6>();
        tiles::dot_bf16<3, 5, 7>();
    }
}

template <int Tile, int Tiles>
KVTROVE_AMX inline void begin(const float* sums, bool add) {
    if constexpr (Tile < Tiles) {
        add ? tiles::load<Tile>(sums + Tile * kSums, tiles::kRowBytes) : tiles::zero<Tile>();
        begin<Tile + 1, Tiles>(sums, add);
    }
}

template <int Tile, int Tiles>
KVTROVE_AMX inline void end(float* sums) {
    if constexpr (Tile < Tiles) {
        tiles::store<Tile>(sums + Tile * kSums, tiles::kRowBytes);
        end<Tile + 1, Tiles>(sums);
    }
}

// bf16 weights of `steps` steps, panel after panel.
struct Weights {
    const std::uint8_t* at;
    std::size_t panel_bytes, steps;
};

// sums (+)= x of row tile `row_tile`, from step `step` on, . weights. Two row tiles and one panel: sums are the tiles
// [row tile][half of the panel]; one row tile and one or two panels: [panel][half].
template <int Parts, int RowTiles, int Panels, bool Stream>
KVTROVE_AMX void dot(const PackedX& x, std::size_t row_tile, std::size_t step, const Weights& weights, bool add,
                     float* sums) {
    const std::uint8_t* rows = x.find<Parts>(row_tile, step);
    const std::uint8_t* panel = weights.at;
    const std::size_t tile = x.tile, second = x.steps * Parts * tile;
    begin<0, 2 * RowTiles * Panels>(sums, add);
    for (std::size_t i = 0; i < weights.steps; ++i, rows += Parts * tile, panel += kLines) {
        if constexpr (RowTiles == 2) {
            dot_rows<Parts, Stream>(rows, second, tile, panel);
            continue;
        }
        tiles::load<4>(rows, tiles::kRowBytes);
        if constexpr (Parts == 3) {
            tiles::load<5>(rows + tile, tiles::kRowBytes);
            tiles::load<6>(rows + 2 * tile, tiles::kRowBytes);
        }
        dot_column<0, Parts, Stream>(panel);
        dot_column<1, Parts, Stream>(panel + kTile);
        if constexpr (Panels == 2) {
            dot_column<2, Parts, Stream>(panel + weights.panel_bytes);
            dot_column<3, Parts, Stream>(panel + weights.panel_bytes + kTile);
        }
    }
    end<0, 2 * RowTiles * Panels>(sums);
}

const std::uint8_t* stored(const Product& job, std::size_t panel, std::size_t step) {
    return job.weights + panel * job.panel_bytes + step * kLines / (job.scales ? 2 : 1);
}

// Up to 32 rows: weights pass by once. int8 weights become bf16 in L1, a few steps of all panels at a time.
template <int Parts, int RowTiles, int Panels>
KVTROVE_AMX void dot_few(const Product& job, const PackedX& x, std::size_t panel, float* sums) {
    if (!job.scales) {
        dot<Parts, RowTiles, Panels, true>(x, 0, 0, {stored(job, panel, 0), job.panel_bytes, x.steps}, false, sums);
        return;
    }
    alignas(64) std::uint8_t wide[Panels * kFewSteps * kLines];
    for (std::size_t step = 0; step < x.steps; step += kFewSteps) {
        const std::size_t steps = std::min(kFewSteps, x.steps - step);
        for (std::size_t p = 0; p < Panels; ++p) {
            dequantise(stored(job, panel + p, step), steps * kLines / 2, wide + p * kFewSteps * kLines);
        }
        dot<Parts, RowTiles, Panels, false>(x, 0, step, {wide, kFewSteps * kLines, steps}, step > 0, sums);
    }
}

template <int Parts>
KVTROVE_AMX void few_rows(const Product& job, const PackedX& x, std::size_t rows, const Part& part) {
    alignas(64) float sums[4 * kSums];
    configure(rows, Parts);
    for (std::size_t panel = part.panel; panel < part.panel_end;) {
        if (rows > kTileRows) {
            dot_few<Parts, 2, 1>(job, x, panel, sums);
            finish(job, panel, 0, kTileRows, sums);
            finish(job, panel++, kTileRows, rows - kTileRows, sums + 2 * kSums);
        } else if (panel + 2 <= part.panel_end) {
            dot_few<Parts, 1, 2>(job, x, panel, sums);
            finish(job, panel++, 0, rows, sums);
            finish(job, panel++, 0, rows, sums + 2 * kSums);
        } else {
            dot_few<Parts, 1, 1>(job, x, panel, sums);
            finish(job, panel++, 0, rows, sums);
        }
    }
    tiles::release();
}

// Two panels (or one) of a block of inputs, for all rows of a task. `part.row` counts groups of 32 rows.
template <int Parts>
struct Block {
    static constexpr std::size_t kPanels = 2, kSteps = kBlock<Parts>;

    const Product& job;
    const PackedX& x;
    std::size_t row_tiles;
    const Part& part;
    std::size_t panel, panels, step, steps;

    // Their weights as bf16; those that become it are written to `wide`.
    KVTROVE_AMX Weights weights(std::uint8_t* wide) const {
        const std::uint8_t* at = stored(job, panel, step);
        if (!job.scales) return {at, job.panel_bytes, steps};
        for (std::size_t p = 0; p < panels; ++p) {
            dequantise(at + p * job.panel_bytes, steps * kLines / 2, wide + p * kSteps * kLines);
        }
        return {wide, kSteps * kLines, steps};
    }

    // The next weights of the task come into L2 while these are multiplied: a slice for every group of rows.
    void ask_for_next(std::size_t group) const {
        const bool last = panel + kPanels >= part.panel_end;
        const std::size_t first = last ? part.panel : panel + kPanels, from = last ? step + kSteps : step;
        if (from >= x.steps) return;
        const std::size_t groups = part.row_end - part.row, at = group - part.row;
        const std::size_t lines = std::min(kSteps, x.steps - from) * kLines / (job.scales ? 2 : 1) / kCacheLine;
        for (std::size_t p = first; p < std::min(first + kPanels, part.panel_end); ++p) {
            const std::uint8_t* weights = stored(job, p, from);
            for (std::size_t i = lines * at / groups; i < lines * (at + 1) / groups; ++i) {
                __builtin_prefetch(weights + i * kCacheLine, 0, 2);
            }
        }
    }

    // sums: of the first panel; those of the next one lie `stride` numbers behind, groups of 32 rows follow each other.
    KVTROVE_AMX void multiply(const Weights& w, float* sums, std::size_t stride) const {
        for (std::size_t group = part.row; group < part.row_end; ++group, sums += 4 * kSums) {
            ask_for_next(group);
            for (std::size_t p = 0; p < panels; ++p) {
                const Weights one{w.at + p * w.panel_bytes, w.panel_bytes, w.steps};
                if (2 * group + 1 < row_tiles) {
                    dot<Parts, 2, 1, false>(x, 2 * group, step, one, step > 0, sums + p * stride);
                } else {
                    dot<Parts, 1, 1, false>(x, 2 * group, step, one, step > 0, sums + p * stride);
                }
            }
        }
    }
};

// Block after block of inputs: x of the block stays in L2, the weights of two panels in L1. A group of 32 rows comes to L1
// once for both.
template <int Parts>
KVTROVE_AMX void many_rows(const Product& job, const PackedX& x, std::size_t rows, const Part& part) {
    using Block = Block<Parts>;
    alignas(64) float sums[kMostPanels * kMostGroups * 4 * kSums];
    alignas(64) std::uint8_t wide[Block::kPanels * Block::kSteps * kLines];
    const std::size_t row_tiles = ceil_div(rows, kTileRows), stride = (part.row_end - part.row) * 4 * kSums;
    configure(kGroupRows, Parts);
    for (std::size_t step = 0; step < x.steps; step += Block::kSteps) {
        for (std::size_t panel = part.panel; panel < part.panel_end; panel += Block::kPanels) {
            const std::size_t panels = std::min(Block::kPanels, part.panel_end - panel);
            const Block block{job, x, row_tiles, part, panel, panels, step, std::min(Block::kSteps, x.steps - step)};
            block.multiply(block.weights(wide), sums + (panel - part.panel) * stride, stride);
        }
    }
    tiles::release();
    const float* at = sums;
    for (std::size_t panel = part.panel; panel < part.panel_end; ++panel) {
        for (std::size_t tile = 2 * part.row; tile < 2 * part.row_end; ++tile, at += kHalves * kSums) {
            const std::size_t row = tile * kTileRows;
            if (row < rows) finish(job, panel, row, std::min(kTileRows, rows - row), at);
        }
    }
}

template <class T>
void multiply_rows(const Product& job, std::size_t rows) {
    constexpr int kParts = sizeof(T) == 2 ? 1 : 3;
    const PackedX x = pack<T>(job, rows);
    Cut cut{1, ceil_div(job.outputs, TilePlaces::kWidth), rows * job.inputs * job.outputs, 1, job.outputs, 2};
    if (rows <= kGroupRows) {
        in_parts(cut, [&](const Part& part) { few_rows<kParts>(job, x, rows, part); });
        return;
    }
    cut.rows = ceil_div(rows, kGroupRows), cut.most_rows = kMostGroups, cut.most_panels = kMostPanels;
    in_parts(cut, [&](const Part& part) { many_rows<kParts>(job, x, rows, part); });
}

void multiply(const Product& job, std::size_t rows) {
    const auto multiply_some = job.type == Float::f32 ? multiply_rows<float> : multiply_rows<std::uint16_t>;
    in_pieces(rows, kMostRows, [&](std::size_t row, std::size_t count) { multiply_some(job.from(row), count); });
}

}  // namespace amx

const LinearLevel kAmxLevel = {layout_of<amx::TilePlaces>(), amx::multiply};

}  // namespace kvtrove
#endif
