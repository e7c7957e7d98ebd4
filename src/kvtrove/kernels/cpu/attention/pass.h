// One tile of queries against the keys of its splits. Included by each level inside its namespace, after gather.h.

// Memory of one thread, carved out of one allocation.
struct Workspace {
    float *q, *q_scale;        // [rows][dim] numbers (int8: pairs of 16-bit numbers), [rows]
    float *scores, *shrink;    // [rows][kChunk], [rows]
    float *pairs, *pair_scale; // int8: [rows][kChunk / 2], [rows]
    float *exact;              // int8: [rows][dim]
    float *best, *sum, *values;           // of the split: [rows], [rows], [rows][dim]
    float *all_best, *all_sum, *all_values;  // of the splits before it
    float *k_scale, *v_scale;  // int8: [kChunk]
    float *tiles;              // copied tiles: a chunk of K, then one of V

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, float* base) {
        std::size_t at = 0;
        const std::size_t rows = (max_rows + 15) / 16 * 16, dim = layer.head_dim;  // AMX computes whole tiles of rows
        const auto take = [&](float*& part, std::size_t count) {
            part = base == nullptr ? nullptr : base + at;
            at += (count + 15) / 16 * 16;
        };
        take(q, rows * dim), take(q_scale, rows);
        take(scores, rows * kChunk), take(shrink, rows);
        take(pairs, rows * kChunk / 2), take(pair_scale, rows), take(exact, rows * dim);
        take(best, rows), take(sum, rows), take(values, rows * dim);
        take(all_best, rows), take(all_sum, rows), take(all_values, rows * dim);
        take(k_scale, kChunk), take(v_scale, kChunk);
        take(tiles, kChunk * dim);
        return at;
    }
};

struct Pass {
    const Step& step;
    const Tile& tile;
    const Layer& layer;
    Blocks blocks;
    Workspace work;
    int rows, group;
    Slot slots[kChunk / kTile];
    int count = 0;

    Pass(const Step& step, const Tile& tile, float* workspace)
        : step(step), tile(tile), layer(step.layer),
          blocks{step.layer, step.batch.table + tile.sequence * step.batch.table_width, tile.kv_head},
          rows(step.rows(tile)), group(step.layer.group()) {
        work.carve(layer, step.max_rows, workspace);
    }
};

// What scores are multiplied with beside q and k.
inline float score_factor(const Layer& layer) {
    return layer.scale * kLog2E * (layer.softcap > 0 ? 2 / layer.softcap : 1);
}

// row: [dim], q as it is.
inline void load_row(const Pass& pass, int r, float* row) {
    const int head = pass.tile.kv_head * pass.group + r % pass.group, dim = pass.layer.head_dim;
    const std::int64_t token = pass.tile.first_token + r / pass.group;
    const Rows& q = pass.step.q;
    floats_of(q.data + token * q.stride + head * dim * bytes_of(q.element), q.element, dim, row);
}

// q times the factor of scores. int8: 16-bit numbers in pairs of dimensions (0, 2), (1, 3).
template <bool Quantised>
void load_queries(Pass& pass) {
    const int dim = pass.layer.head_dim;
    const float factor = score_factor(pass.layer);
    for (int r = 0; r < pass.rows; ++r) {
        float* row = pass.work.q + r * dim;
        load_row(pass, r, row);
        float most = 1e-30f;
        for (int d = 0; d < dim; ++d) row[d] *= factor, most = std::max(most, std::fabs(row[d]));
        if (!Quantised) continue;
        pass.work.q_scale[r] = most / kMostInt16;
        auto* pairs = reinterpret_cast<std::int32_t*>(pass.work.q) + r * (dim / 2);
        const auto whole = [&](int d) { return static_cast<std::int32_t>(std::lrintf(row[d] * (kMostInt16 / most))); };
        for (int d = 0; d < dim; d += 4) {
            const std::int32_t even = (whole(d) & 0xFFFF) | static_cast<std::int32_t>(static_cast<std::uint32_t>(whole(d + 2)) << 16);
            const std::int32_t odd = (whole(d + 1) & 0xFFFF) | static_cast<std::int32_t>(static_cast<std::uint32_t>(whole(d + 3)) << 16);
            std::memcpy(pairs + d / 2, &even, 4), std::memcpy(pairs + d / 2 + 1, &odd, 4);
        }
    }
}

inline Slot slot_at(const Pass& pass, std::int64_t begin) {
    const Reach& reach = pass.layer.reach;
    const std::int64_t last = pass.tile.position + pass.tile.tokens - 1;
    const std::int64_t first = reach.first(pass.tile.position), first_of_last = reach.first(last);
    std::uint32_t live = 0;
    if (begin >= first && begin + kTile <= last + 1) {
        live = kAllLive;
    } else {
        for (int j = 0; j < kTile; ++j) {
            const std::int64_t at = begin + j;
            live |= static_cast<std::uint32_t>(at <= last && (at >= first || at < reach.sinks)) << j;
        }
    }
    const bool all_read = begin >= first_of_last || begin + kTile <= reach.sinks;
    return {begin, live, live != kAllLive || begin + kTile > pass.tile.position + 1 || !all_read};
}

// The tiles of a chunk that some row reads. piece: tokens that come together, a multiple of kTile that divides kChunk;
// where one tile of a piece is read, the others come as well, live or not.
inline void find_slots(Pass& pass, std::int64_t chunk, int piece) {
    const std::int64_t last = pass.tile.position + pass.tile.tokens - 1;
    pass.count = 0;
    for (std::int64_t begin = chunk; begin < std::min(chunk + kChunk, last + 1); begin += piece) {
        std::uint32_t live = 0;
        for (int j = 0; j < piece; j += kTile) {
            const Slot slot = slot_at(pass, begin + j);
            live |= slot.live;
            pass.slots[pass.count + j / kTile] = slot;
        }
        if (live) pass.count += piece / kTile;
    }
}

// int8: the scales of all tokens in the chunk.
inline void load_scales(Pass& pass) {
    for (int i = 0; i < pass.count; ++i) {
        const bool tiled = pass.layer.tiled;
        copy_scales(pass.blocks, pass.layer.k_scale, pass.slots[i], tiled, pass.work.k_scale + i * kTile);
        copy_scales(pass.blocks, pass.layer.v_scale, pass.slots[i], tiled, pass.work.v_scale + i * kTile);
    }
}

// K of the slots as columns, and what is read while each of them is multiplied: a group of columns later, then V.
template <class Read>
void fetch_after_keys(const Pass& pass, const typename Read::T* const* columns, const typename Read::T** ahead) {
    constexpr int per_tile = kTile / W;
    const int count = pass.count * per_tile, group = std::max(per_tile, columns_at_once(pass.rows));
    for (int c = 0; c < count; ++c) {
        ahead[c] = columns[Read::kTiled && c + group < count ? c + group : c];
        if (!Read::kTiled || c + group < count) continue;
        const int value = std::min(c + group - count, count - 1);
        const auto* tile = tile_in_block<Read>(pass.blocks, pass.layer.v, pass.slots[value / per_tile].begin);
        ahead[c] = tile + value % per_tile * W * Read::Format::kPack;
    }
}

template <class Read>
void score(Pass& pass) {
    using Format = typename Read::Format;
    using T = typename Read::T;
    const int dim = pass.layer.head_dim;
    const T *columns[kChunk / W] = {}, *ahead[kChunk / W];
    for (int i = 0; i < pass.count; ++i) {
        const Slot& slot = pass.slots[i];
        const T* keys;
        if constexpr (Read::kTiled) keys = tile_in_block<Read>(pass.blocks, pass.layer.k, slot.begin);
        else keys = Read::copy(pass.blocks, pass.layer.k, slot, true, reinterpret_cast<T*>(pass.work.tiles) + i * kTile * dim);
        for (int c = 0; c < kTile / W; ++c) columns[i * (kTile / W) + c] = keys + c * W * Format::kPack;
    }
    fetch_after_keys<Read>(pass, columns, ahead);
    if constexpr (Read::kQuantised) load_scales(pass);
    using X = typename Format::X;
    const int steps = dim / Format::kRows;
    const Columns<Format> keys{columns, ahead, &steps, 1, pass.count * (kTile / W), Format::kRows * kTile, kTile, true};
    product<Format>(keys, {reinterpret_cast<const X*>(pass.work.q), dim * 2 / Format::kRows,
                           reinterpret_cast<X*>(pass.work.scores), kChunk}, pass.rows);
}

// Caps a row of scores and hides the tokens that the row does not read.
inline void mask_row(Pass& pass, int r) {
    const Reach& reach = pass.layer.reach;
    float* scores = pass.work.scores + r * kChunk;
    if (pass.layer.softcap > 0) cap_row(scores, pass.count * kTile, pass.layer.softcap);
    const std::int64_t position = pass.tile.position + r / pass.group;
    for (int i = 0; i < pass.count; ++i) {
        if (!pass.slots[i].masked) continue;
        const auto inside = [&](std::int64_t at) {
            return static_cast<float>(std::clamp<std::int64_t>(at - pass.slots[i].begin, -1, kTile + 1));
        };
        mask_tile(scores + i * kTile, {inside(reach.first(position)), inside(position + 1), inside(reach.sinks)});
    }
}

// What earlier chunks added up to shrinks as the maximum grows.
inline void shrink_values(Pass& pass, int r) {
    const int dim = pass.layer.head_dim;
    float* values = pass.work.values + r * dim;
    for (int d = 0; d < dim; d += W) store(values + d, load(values + d) * all(pass.work.shrink[r]));
}

// Scores of the chunk become weights.
template <class Read>
void weigh(Pass& pass) {
    const Workspace& work = pass.work;
    const int count = pass.count * kTile;
    for (int r = 0; r < pass.rows; ++r) {
        float* scores = work.scores + r * kChunk;
        if constexpr (Read::kQuantised) rescale_row(scores, count, work.q_scale[r], work.k_scale);
        mask_row(pass, r);
        const auto keep = [&](int j, F weights) { return store(scores + j, weights), weights; };
        work.shrink[r] = weigh_row(scores, count, work.best[r], work.sum[r], keep);
        if constexpr (Read::kQuantised) {
            auto* pairs = reinterpret_cast<std::int32_t*>(work.pairs) + r * (kChunk / 2);
            const auto put = [&](int j, I whole) { store_pairs(pairs + j / 2, whole); };
            work.pair_scale[r] = quantise_row(scores, count, work.v_scale, put);
        } else {
            shrink_values(pass, r);
        }
    }
}

// Tiles from slot i on that follow one another in memory, all of their tokens live. values: address of the first.
template <class Read>
int run_of_tiles(const Pass& pass, int i, const typename Read::T* values) {
    int run = 1;
    for (; i + run < pass.count && pass.slots[i + run].live == kAllLive; ++run) {
        const auto* next = tile_in_block<Read>(pass.blocks, pass.layer.v, pass.slots[i + run].begin);
        if (next != values + run * kTile * pass.layer.head_dim) break;
    }
    return run;
}

// What is read after V of the slots before `i`: V of slot i, or K of the next chunk; `values` where there is neither.
template <class Read>
const typename Read::T* after_values(const Pass& pass, int i, const typename Read::T* values) {
    if (i < pass.count) return tile_in_block<Read>(pass.blocks, pass.layer.v, pass.slots[i].begin);
    const std::int64_t next = pass.slots[i - 1].begin + kTile;
    const bool held = next <= pass.tile.position && pass.blocks.table[next / pass.layer.block_size] >= 0;
    return held ? tile_in_block<Read>(pass.blocks, pass.layer.k, next) : values;
}

// V of slot i as it lies, or a copy where it is plain or holds tokens that are not live.
template <class Read>
const typename Read::T* values_of(const Pass& pass, int i) {
    using T = typename Read::T;
    const Slot& slot = pass.slots[i];
    const int dim = pass.layer.head_dim;
    T* copied = reinterpret_cast<T*>(pass.work.tiles) + i * kTile * dim;
    if constexpr (Read::kTiled) {
        const T* values = tile_in_block<Read>(pass.blocks, pass.layer.v, slot.begin);
        return Read::kQuantised || slot.live == kAllLive ? values : copy_live<Read>(values, slot, dim, copied);
    } else {
        return Read::copy(pass.blocks, pass.layer.v, slot, false, copied);
    }
}

// values += weights . V
template <class Read>
void mix(Pass& pass) {
    using Format = typename Read::Format;
    using T = typename Read::T;
    using X = typename Format::X;
    constexpr int most = kChunk / kTile;
    const Workspace& work = pass.work;
    const int dim = pass.layer.head_dim, count = dim / W;
    const T *columns[most * kMaxDim / W], *ahead[most * kMaxDim / W];
    int steps[most], runs = 0;
    for (int i = 0, tiles = 1; i < pass.count; i += tiles, ++runs) {
        const T *values = values_of<Read>(pass, i), *after = values;
        tiles = 1;
        if constexpr (Read::kTiled) {
            if (Read::kQuantised || pass.slots[i].live == kAllLive) tiles = run_of_tiles<Read>(pass, i, values);
            after = after_values<Read>(pass, i + tiles, values);
        }
        for (int c = 0; c < count; ++c) {
            columns[runs * count + c] = values + c * W * Format::kPack;
            ahead[runs * count + c] = after + c * W * Format::kPack;
        }
        steps[runs] = tiles * kTile / Format::kRows;
    }
    const Columns<Format> tile{columns, ahead, steps, runs, count, Format::kRows * dim, dim, Read::kQuantised};
    const float* weights = Read::kQuantised ? work.pairs : work.scores;
    float* sums = Read::kQuantised ? work.exact : work.values;
    product<Format>(tile, {reinterpret_cast<const X*>(weights), kChunk * 2 / Format::kRows, reinterpret_cast<X*>(sums), dim},
                    pass.rows);
    if constexpr (Read::kQuantised) {
        for (int r = 0; r < pass.rows; ++r)
            for (int d = r * dim; d < (r + 1) * dim; d += W) {
                const F exact = __builtin_convertvector(load(reinterpret_cast<std::int32_t*>(work.exact) + d), F);
                store(work.values + d, load(work.values + d) * all(work.shrink[r]) + exact * all(work.pair_scale[r]));
            }
    }
}

inline void forget(float* best, float* sum, float* values, int rows, int dim) {
    std::fill(best, best + rows, kNothing);
    std::fill(sum, sum + rows, 0.0f);
    std::fill(values, values + rows * dim, 0.0f);
}

// How a pass is computed on vectors.
template <class Read>
struct VectorStages {
    static constexpr int piece = kTile;
    static void load(Pass& pass) { load_queries<Read::kQuantised>(pass); }
    static void multiply_keys(Pass& pass) { score<Read>(pass); }
    static void make_weights(Pass& pass) { weigh<Read>(pass); }
    static void multiply_values(Pass& pass) { mix<Read>(pass); }
};

// best, sum, values of the keys in one split.
template <class Stages>
void read_split(Stages& stages, Pass& pass, std::int64_t split) {
    forget(pass.work.best, pass.work.sum, pass.work.values, pass.rows, pass.layer.head_dim);
    for (std::int64_t chunk = split * kSplit; chunk < (split + 1) * kSplit; chunk += kChunk) {
        find_slots(pass, chunk, stages.piece);
        if (pass.count == 0) continue;
        stages.multiply_keys(pass);
        stages.make_weights(pass);
        stages.multiply_values(pass);
    }
}

inline void write_out(const Pass& pass, const float* best, const float* sum, float* values) {
    const int dim = pass.layer.head_dim;
    const Rows& out = pass.step.out;
    for (int r = 0; r < pass.rows; ++r) {
        const int head = pass.tile.kv_head * pass.group + r % pass.group;
        const std::int64_t token = pass.tile.first_token + r / pass.group;
        float* row = values + r * dim;
        for (int d = 0; d < dim; ++d) row[d] /= sum[r];
        from_floats(row, out.element, dim, out.data + token * out.stride + head * dim * bytes_of(out.element));
        if (pass.step.lse) pass.step.lse[token * pass.layer.num_heads + head] = (best[r] + std::log2(sum[r])) * kLn2;
    }
}

// split: one of the tile's, or -1 for all of them.
template <class Stages>
void attend_by(Stages& stages, Pass& pass, int split) {
    const Workspace& work = pass.work;
    const int rows = pass.rows, dim = pass.layer.head_dim;
    stages.load(pass);
    if (split >= 0) {
        read_split(stages, pass, pass.tile.first_split + split);
        float* to = pass.step.partials + (pass.tile.partial + split) * pass.step.partial_floats();
        std::copy(work.best, work.best + rows, to);
        std::copy(work.sum, work.sum + rows, to + rows);
        std::copy(work.values, work.values + rows * dim, to + 2 * rows);
        return;
    }
    forget(work.all_best, work.all_sum, work.all_values, rows, dim);
    for (std::int64_t i = 0; i < pass.tile.num_splits; ++i) {
        read_split(stages, pass, pass.tile.first_split + i);
        for (int r = 0; r < rows; ++r)
            merge_row(work.all_best[r], work.all_sum[r], work.all_values + r * dim, work.best[r], work.sum[r],
                      work.values + r * dim, dim);
    }
    write_out(pass, work.all_best, work.all_sum, work.all_values);
}

template <class Read>
void attend_as(Pass& pass, int split) {
    VectorStages<Read> stages;
    attend_by(stages, pass, split);
}
