// One tile of queries on its way through chunks of K and V. Included by each level inside its namespace, after softmax.h and
// chunk.h.
//
// A chunk takes three stages, which classes for keys and for values provide, each for one form of K or V (see Keys, Values).

// Memory of one thread, carved out of one allocation.
struct Workspace {
    float *q, *q_scale;        // [rows][dim] numbers (int8: pairs of 16-bit numbers), [rows]
    float *q_total;            // int4: [rows], of a query's elements
    float *scores, *shrink;    // [products][kChunk], [rows]
    float *weights, *weight_scale;  // [rows][kChunk] of 16 bits, or two planes of bytes; [rows]
    float *zeros;              // int4: [rows], what zeros of values add to each element
    float *exact;              // int8: [products][dim]
    float *best, *sum, *values;           // of the split: [rows], [rows], [rows][dim]
    float *all_best, *all_sum, *all_values;  // of the splits before it
    float *k_scale, *v_scale, *k_zero, *v_zero;  // int8, int4: [kChunk]
    float *tiles;              // copied tiles: a chunk of K, then one of V

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, float* base) {
        std::size_t at = 0;
        const std::size_t k_dim = layer.k.dim, v_dim = layer.v.dim, rows = (max_rows + 15) / 16 * 16;
        const std::size_t products = (2 * max_rows + 15) / 16 * 16 + 16;  // on AMX: two planes, whole tiles of rows
        const auto take = [&](float*& part, std::size_t count) {
            part = base == nullptr ? nullptr : base + at;
            at += (count + 15) / 16 * 16;
        };
        take(q, products * k_dim), take(q_scale, rows), take(q_total, rows);
        take(scores, products * kChunk), take(shrink, rows);
        take(weights, products * kChunk / 2), take(weight_scale, rows), take(zeros, rows), take(exact, products * v_dim);
        take(best, rows), take(sum, rows), take(values, products * v_dim);
        take(all_best, rows), take(all_sum, rows), take(all_values, rows * v_dim);
        take(k_scale, kChunk), take(v_scale, kChunk), take(k_zero, kChunk), take(v_zero, kChunk);
        take(tiles, kChunk * std::max(k_dim, v_dim));
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

    Pass(const Step& step, const Tile& tile, float* workspace)
        : step(step), tile(tile), layer(step.layer),
          blocks{step.layer, step.batch.table + tile.sequence * step.batch.table_width, tile.kv_head},
          rows(step.rows(tile)), group(step.layer.group()) {
        work.carve(layer, step.max_rows, workspace);
    }

    float* scores(int r) const { return work.scores + static_cast<std::ptrdiff_t>(r) * kChunk; }
    float* values(int r) const { return work.values + static_cast<std::ptrdiff_t>(r) * layer.v.dim; }
};

// Stages for keys.
class Keys {
public:
    virtual void take_queries(Pass& pass) = 0;                                        // once an item
    virtual void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) = 0;          // products of all rows and tokens
    virtual F score(const Pass& pass, const Chunk& chunk, int r) const = 0;           // those of a row become scores; the
                                                                                      // largest per lane
protected:
    ~Keys() = default;
};

// Stages for values.
class Values {
public:
    const int piece;  // tokens that must come together

    explicit Values(int piece) : piece(piece) {}
    virtual void prepare(Pass& pass, const Chunk& chunk) = 0;
    // Scores of a row become weights; returns by how much everything before shrinks.
    virtual float weigh(Pass& pass, const Chunk& chunk, int r, F most, Ahead& ahead) = 0;
    // pass.work.values = what it was, shrunk, + weights . V
    virtual void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) = 0;

protected:
    ~Values() = default;
};

// What scores are multiplied with beside q and k.
inline float score_factor(const Layer& layer) {
    return layer.scale * kLog2E * (layer.softcap > 0 ? 2 / layer.softcap : 1);
}

// Address of q of row r.
inline const std::uint8_t* query(const Pass& pass, int r) {
    const int head = pass.tile.kv_head * pass.group + r % pass.group;
    const std::int64_t token = pass.tile.first_token + r / pass.group;
    const Rows& q = pass.step.q;
    return q.data + token * q.stride + head * pass.layer.k.dim * bytes_of(q.element);
}

// row: [dim], q as it is, or turned as keys are.
inline void load_row(const Pass& pass, int r, float* row) {
    floats_of(query(pass, r), pass.step.q.element, pass.layer.k.dim, row);
    if (pass.layer.k.turned) turn(row, pass.layer.k.dim);
}

// q of row r times the factor of scores, as whole numbers up to kMostWhole: put(d, numbers) stores those from d on.
// q_scale takes sums back.
template <class Put>
INLINE void whole_row(const Pass& pass, int r, const Put& put) {
    float row[kMaxDim];
    load_row(pass, r, row);
    const int dim = pass.layer.k.dim;
    F most = all(1e-30f);
    for (int d = 0; d < dim; d += W) most = larger(larger(load(row + d), F{} - load(row + d)), most);
    const float largest = largest_of(most);
    const F factor = all(kMostWhole / largest), magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds
    I total = I{};
    for (int d = 0; d < dim; d += W) {
        const I whole = (I)(load(row + d) * factor + magic) - all(0x4B400000);
        put(d, whole), total += whole;
    }
    pass.work.q_scale[r] = largest / kMostWhole * score_factor(pass.layer);
    pass.work.q_total[r] = 0;
    for (int i = 0; i < W; ++i) pass.work.q_total[r] += static_cast<float>(total[i]);
}

// What products with keys of int8, or of int4 beside `Zero`, are worth: exact(j) from token j on.
template <bool Zero, class Exact>
INLINE F score_whole(const Pass& pass, const Chunk& chunk, int r, const Exact& exact) {
    const Workspace& work = pass.work;
    const F factor = all(work.q_scale[r]), total = all(work.q_scale[r] * work.q_total[r]);
    return score_row(pass.scores(r), chunk.count * kTile, [&](int j) __attribute__((always_inline)) {
        const F scaled = __builtin_convertvector(exact(j), F) * (factor * load(work.k_scale + j));
        if constexpr (Zero) return scaled + total * load(work.k_zero + j);
        else return scaled;
    });
}

// Scales of all tokens in the chunk, and zeros of int4.
inline void load_scales(const Pass& pass, const Chunk& chunk, const Side& side, const Places& places, float* scale, float* zero) {
    for (int i = 0; i < chunk.count; ++i) {
        copy_scales(pass.blocks, side.scale, chunk.slots[i], side.tiled ? places.scale[i] : nullptr, scale + i * kTile);
        if (side.zero.data) copy_scales(pass.blocks, side.zero, chunk.slots[i], places.zero[i], zero + i * kTile);
    }
}

// Caps a row of scores and hides the tokens that the row does not read.
inline void mask_row(const Pass& pass, const Chunk& chunk, int r) {
    const Reach& reach = pass.layer.reach;
    float* scores = pass.scores(r);
    if (pass.layer.softcap > 0) cap_row(scores, chunk.count * kTile, pass.layer.softcap);
    const std::int64_t position = pass.tile.position + r / pass.group, first = reach.first(position);
    for (int i = 0; i < chunk.count; ++i) {
        const Slot& slot = chunk.slots[i];
        if (!slot.masked) continue;
        const auto inside = [&](std::int64_t at) {
            return static_cast<float>(std::clamp<std::int64_t>(at - slot.begin, -1, kTile + 1));
        };
        mask_tile(scores + i * kTile, {inside(first), inside(reach.end(position)), inside(reach.sinks)});
    }
}

// What earlier chunks added up to shrinks as the maximum grows.
INLINE void shrink_values(const Pass& pass, int r, float shrink) {
    if (shrink == 1) return;
    float* values = pass.values(r);
    for (int d = 0; d < pass.layer.v.dim; d += W) store(values + d, load(values + d) * all(shrink));
}

// weigh for V in int8, or in int4 with `Zero`: weights times the scales of values, as whole numbers that put(j, numbers)
// stores.
template <bool Zero, class Put>
INLINE float weigh_whole(const Workspace& work, int r, float* scores, int count, F most, Ahead& ahead, const Put& put) {
    F most_scaled = F{}, zeros = F{};
    const auto keep = [&](int j, F weights) __attribute__((always_inline)) {
        const F scaled = weights * load(work.v_scale + j);
        store(scores + j, scaled);
        most_scaled = larger(scaled, most_scaled);
        if constexpr (Zero) zeros += weights * load(work.v_zero + j);
        return weights;
    };
    const float shrink = weigh_row(scores, count, most, work.best[r], work.sum[r], ahead, keep);
    if constexpr (Zero) work.zeros[r] = sum_of(zeros);
    work.weight_scale[r] = quantise_row(scores, count, most_scaled, put);
    return shrink;
}

// Values of row r: what they were, shrunk, plus the products of whole numbers, exact(d) from d on.
template <bool Zero, class Exact>
INLINE void add_exact(const Pass& pass, int r, const Exact& exact) {
    float* values = pass.values(r);
    const F shrink = all(pass.work.shrink[r]), scale = all(pass.work.weight_scale[r]), zero = all(pass.work.zeros[r]);
    for (int d = 0; d < pass.layer.v.dim; d += W) {
        F sum = load(values + d) * shrink + __builtin_convertvector(exact(d), F) * scale;
        if constexpr (Zero) sum += zero;
        store(values + d, sum);
    }
}

// All stages of a chunk.
inline void read_chunk(Keys& keys, Values& values, Pass& pass, const Chunk& chunk, Ahead& ahead) {
    keys.multiply(pass, chunk, ahead);
    values.prepare(pass, chunk);
    for (int r = 0; r < pass.rows; ++r) {
        F most = keys.score(pass, chunk, r);
        if (chunk.masked || pass.layer.softcap > 0) {
            mask_row(pass, chunk, r);
            most = largest_in_row(pass.scores(r), chunk.count * kTile);
        }
        pass.work.shrink[r] = values.weigh(pass, chunk, r, most, ahead);
    }
    values.multiply(pass, chunk, ahead);
}

inline void forget(float* best, float* sum, float* values, int rows, int dim) {
    std::fill(best, best + rows, kNothing);
    std::fill(sum, sum + rows, 0.0f);
    std::fill(values, values + static_cast<std::ptrdiff_t>(rows) * dim, 0.0f);
}

// One more score, of value zero.
inline void add_sink(float logit, float& best, float& sum, float* values, int dim) {
    const float score = logit * kLog2E, now = std::max(best, score), shrink = exp2(best - now);
    best = now;
    sum = sum * shrink + exp2(score - now);
    for (int d = 0; d < dim; d += W) store(values + d, load(values + d) * all(shrink));
}

inline void write_out(const Pass& pass, float* best, float* sum, float* values) {
    const int dim = pass.layer.v.dim;
    const Rows& out = pass.step.out;
    for (int r = 0; r < pass.rows; ++r) {
        const int head = pass.tile.kv_head * pass.group + r % pass.group;
        const std::int64_t token = pass.tile.first_token + r / pass.group;
        float* row = values + static_cast<std::ptrdiff_t>(r) * dim;
        if (const Earlier* earlier = pass.step.earlier) {
            const std::int64_t at = token * pass.layer.num_heads + head;
            merge_row(best[r], sum[r], row, earlier->lse[at] * kLog2E, 1, earlier->out + at * dim, dim);
        }
        if (pass.layer.sink_logits) add_sink(pass.layer.sink_logits[head], best[r], sum[r], row, dim);
        const float total = sum[r] > 0 ? sum[r] : 1;  // nothing was read
        for (int d = 0; d < dim; d += W) store(row + d, load(row + d) / all(total));
        if (pass.layer.v.turned) turn_back(row, dim);
        from_floats(row, out.element, dim, out.data + token * out.stride + head * dim * bytes_of(out.element));
        if (pass.step.lse) pass.step.lse[token * pass.layer.num_heads + head] = (best[r] + std::log2(sum[r])) * kLn2;
    }
}

// One item of a run. chunk: the first of the item, or one of a later item when it has none; in the end, the one after.
inline void attend_item(Keys& keys, Values& values, Pass& pass, int item, Reader& reader, Chunk*& chunk, Chunk*& next, Ahead& ahead) {
    const Tile& tile = pass.tile;
    const Workspace& work = pass.work;
    const int rows = pass.rows, dim = pass.layer.v.dim, only = pass.step.items[item].split;
    keys.take_queries(pass);
    if (only < 0) forget(work.all_best, work.all_sum, work.all_values, rows, dim);
    const std::int64_t first = std::max(only, 0), last = only < 0 ? tile.num_splits - 1 : only;
    for (std::int64_t split = tile.first_split + first; split <= tile.first_split + last; ++split) {
        forget(work.best, work.sum, work.values, rows, dim);
        while (chunk->item == item && chunk->split == split) {
            reader.next(*next);
            const std::int64_t tokens = std::int64_t{chunk->count} * kTile;
            look_ahead(ahead, pass.layer, *next, tokens * (pass.layer.k.vector_bytes() + pass.layer.v.vector_bytes() + rows * kScoreBytes));
            read_chunk(keys, values, pass, *chunk, ahead);
            std::swap(chunk, next);
        }
        if (only >= 0) {
            float* to = pass.step.partials + (tile.partial + only) * pass.step.partial_floats();
            std::copy(work.best, work.best + rows, to);
            std::copy(work.sum, work.sum + rows, to + rows);
            std::copy(work.values, work.values + static_cast<std::ptrdiff_t>(rows) * dim, to + 2 * rows);
            return;
        }
        for (int r = 0; r < rows; ++r)
            merge_row(work.all_best[r], work.all_sum[r], work.all_values + static_cast<std::ptrdiff_t>(r) * dim, work.best[r],
                      work.sum[r], pass.values(r), dim);
    }
    write_out(pass, work.all_best, work.all_sum, work.all_values);
}

inline void attend_run(Keys& keys, Values& values, const Step& step, const Run& run, float* workspace) {
    Reader reader(step, run, values.piece);
    Ahead ahead;
    Chunk chunks[2], *chunk = &chunks[0], *next = &chunks[1];
    reader.next(*chunk);
    for (int item = run.begin; item < run.end; ++item) {
        Pass pass(step, step.tiles[step.items[item].tile], workspace);
        attend_item(keys, values, pass, item, reader, chunk, next, ahead);
    }
}
