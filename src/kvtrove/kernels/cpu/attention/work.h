// The pieces that a step is cut into, and the functions that each instruction-set level provides for them.
#pragma once

#include "attention/attention.h"

namespace kvtrove::attention {

// Queries that share passes over K/V: `tokens` consecutive tokens of a sequence with all heads of one kv head.
// rows = tokens * group, row r being token r / group and head r % group of the kv head.
struct Tile {
    std::int64_t sequence, first_token, position;  // first_token: in the step; position: in the sequence
    std::int64_t first_split, num_splits;
    std::int64_t partial;  // -1, or index of its first partial result: num_splits of them follow one another
    int tokens, kv_head;
};

// One tile's pass over one split, or over all of them when `split` is -1.
struct Item {
    std::int32_t tile, split;
};

// Items [begin, end) of a step, which one thread computes in turn. after: what it will probably be given next, or -1.
struct Run {
    std::int32_t begin, end, after;
};

// Blocks that queries have chosen (Selection): a bit for each block of a sequence. words: in which they lie.
struct Kept {
    std::uint64_t* bits = nullptr;
    std::int64_t blocks = 0, words = 0, rows = 0;
    int heads = 0;

    explicit operator bool() const { return bits != nullptr; }
    std::uint64_t* row(std::int64_t token, int kv_head) const { return bits + (token * heads + kv_head) * words; }
    // Of a tile: what some of its tokens read, and what all of them do.
    std::uint64_t* any(std::int64_t tile) const { return bits + (rows + 2 * tile) * words; }
    std::uint64_t* every(std::int64_t tile) const { return any(tile) + words; }
    static bool has(const std::uint64_t* bits, std::int64_t block) { return bits[block / 64] >> block % 64 & 1; }
};

struct Step {
    const Layer& layer;
    const Batch& batch;
    const Rows& q;
    const Rows& out;
    const Tile* tiles;
    const Item* items;
    float* lse;
    const Earlier* earlier;
    float* partials;
    int max_rows;
    int band;  // rows whose scores are held at once
    Kept kept;

    int rows(const Tile& tile) const { return tile.tokens * layer.group(); }
    // Partial result of a tile: per row the maximum, the sum and the weighted values.
    std::size_t partial_floats() const { return static_cast<std::size_t>(max_rows) * (layer.v.dim + 2); }
};

struct Level {
    int band;         // see Step
    int target_rows;  // (token, head) pairs that share a pass over K/V in prefill
    std::size_t (*workspace_floats)(const Layer& layer, int max_rows, int band);
    std::size_t (*choice_floats)(const Layer& layer, int max_rows, std::int64_t blocks);
    void (*choose)(const Step& step, std::int64_t tile, float* workspace);  // writes rows of kept
    void (*attend)(const Step& step, const Run& run, float* workspace);   // writes out or partials
    void (*merge)(const Step& step, const Tile& tile, float* workspace);  // partials -> out
};

extern const Level kPortable;
#if defined(__x86_64__)
extern const Level kAvx2;
extern const Level kAvx512;
extern const Level kAmx;
#endif

}  // namespace kvtrove::attention
