// One tile of queries on its way through chunks of K and V. Included by each level inside its namespace, after softmax.h and
// chunk.h.
//
// A chunk takes three stages, which classes for keys and for values provide, each for one form of K or V (see Keys, Values).
// Bands of rows (Step::band) take them one after the other, so that scores stay in the caches.

constexpr int kScoreStride = kChunk + kTile;  // of scores, from row to row: rows 4 KiB apart would share lines of caches

// Memory of one thread, carved out of one allocation. Rows are those of a band where it is not said that all have a place.
struct Workspace {
    float *q, *q_scale;        // all rows: [products][dim] numbers (int8: pairs of 16-bit numbers) band after band, [rows]
    float *q_total;            // int4: all rows, of a query's elements
    float *scores, *shrink;    // [products][kScoreStride], [rows]
    float *weights, *weight_scale;  // int8, int4: [rows][kChunk] of 16 bits, or two planes of bytes; [rows]
    float *zeros;              // int4: [rows], what zeros of values add to each element; int8: sums of whole weights
    float *exact;              // int8: [products][dim]
    float *best, *sum, *values;           // of the split, all rows: [rows], [rows], [rows][dim]
    float *all_best, *all_sum, *all_values;  // of the splits before it
    float *k_scale, *v_scale, *k_zero, *v_zero;  // int8, int4: [kChunk]
    float *k_tiles, *v_tiles;  // copied tiles of a chunk

    // On AMX: two planes, whole tiles of rows.
    static std::size_t products(int rows) { return (2 * rows + 15) / 16 * 16 + 16; }

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, int band, float* base) {
        std::size_t at = 0;
        const std::size_t k_dim = layer.k.dim, v_dim = layer.v.dim, rows = (max_rows + 15) / 16 * 16;
        const std::size_t products = Workspace::products(std::min(max_rows, band)), bands = (max_rows + band - 1) / band;
        const auto take = [&](float*& part, std::size_t count) {
            part = base == nullptr ? nullptr : base + at;
            at += (count + 15) / 16 * 16;
        };
        take(q, bands * products * k_dim), take(q_scale, rows), take(q_total, rows);
        take(scores, products * kScoreStride), take(shrink, rows);
        take(weights, products * kChunk / 2), take(weight_scale, rows), take(zeros, rows), take(exact, products * v_dim);
        take(best, rows), take(sum, rows), take(values, (rows + 16) * v_dim);
        take(all_best, rows), take(all_sum, rows), take(all_values, rows * v_dim);
        take(k_scale, kChunk), take(v_scale, kChunk), take(k_zero, kChunk), take(v_zero, kChunk);
        take(k_tiles, kChunk * k_dim), take(v_tiles, kChunk * v_dim);
        return at;
    }
};

struct Pass {
    const Step& step;
    const Tile& tile;
    const Layer& layer;
    Blocks blocks;
    Workspace work;
    int rows, group, first = 0;  // first: row of the tile

    Pass(const Step& step, const Tile& tile, float* workspace)
        : step(step), tile(tile), layer(step.layer),
          blocks{step.layer, step.batch.table + tile.sequence * step.batch.table_width, tile.kv_head},
          rows(step.rows(tile)), group(step.layer.group()) {
        work.carve(layer, step.max_rows, step.band, workspace);
    }

    // The band of rows that begins with `row`.
    Pass band(int row) const {
        Pass part(*this);
        part.first = row, part.rows = std::min(rows - row, step.band);
        part.work.q += row / step.band * Workspace::products(step.band) * layer.k.dim;
        for (float** each : {&part.work.q_scale, &part.work.q_total, &part.work.best, &part.work.sum}) *each += row;
        part.work.values += static_cast<std::ptrdiff_t>(row) * layer.v.dim;
        return part;
    }

    int head(int r) const { return tile.kv_head * group + (first + r) % group; }
    int token(int r) const { return (first + r) / group; }  // of the tile
    std::int64_t position(int r) const { return tile.position + token(r); }

    float* scores(int r) const { return work.scores + static_cast<std::ptrdiff_t>(r) * kScoreStride; }
    float* values(int r) const { return work.values + static_cast<std::ptrdiff_t>(r) * layer.v.dim; }
};

// Stages for keys.
class Keys {
public:
    virtual void take_queries(Pass& pass) = 0;                                // once an item
    virtual void prepare(Pass& pass, const Chunk& chunk, Ahead& ahead) = 0;   // once for all bands
    virtual void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) = 0;  // products of all rows and tokens
    // Those of a row become scores, but for a factor that is left; returns the largest per lane.
    virtual F score(const Pass& pass, const Chunk& chunk, int r) const = 0;
    virtual float factor(const Pass&) const { return 1; }

protected:
    ~Keys() = default;
};

// Stages for values.
class Values {
public:
    const int piece;  // tokens that must come together

    explicit Values(int piece) : piece(piece) {}
    virtual void prepare(Pass& pass, const Chunk& chunk, Ahead& ahead) = 0;  // once for all bands
    // Scores of a row become weights; returns their sum per lane.
    virtual F weigh(Pass& pass, const Chunk& chunk, int r, const Below& below, Ahead& ahead) = 0;
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
    const Rows& q = pass.step.q;
    return q.data + (pass.tile.first_token + pass.token(r)) * q.stride + pass.head(r) * pass.layer.k.dim * bytes_of(q.element);
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

// The same as two planes of signed bytes: 128 * high + low.
inline void whole_planes(const Pass& pass, int r, std::int8_t* high, std::int8_t* low) {
    whole_row(pass, r, [&](int d, I whole) __attribute__((always_inline)) {
        const I upper = (whole + 64) >> 7;
        store_bytes(high + d, upper), store_bytes(low + d, whole - (upper << 7));
    });
}

INLINE I join(const std::int32_t* high, const std::int32_t* low) { return (I)(((U)load(high) << 7) + (U)load(low)); }

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
    const std::int64_t position = pass.position(r), first = reach.first(position);
    const Kept& kept = pass.step.kept;
    const std::uint64_t* reads = kept ? kept.row(pass.tile.first_token + pass.token(r), pass.tile.kv_head) : nullptr;
    for (int i = 0; i < chunk.count; ++i) {
        const Slot& slot = chunk.slots[i];
        if (!slot.masked) continue;
        if (reads && !Kept::has(reads, slot.begin / pass.layer.block_size)) {
            std::fill(scores + i * kTile, scores + (i + 1) * kTile, -std::numeric_limits<float>::infinity());
            continue;
        }
        const auto inside = [&](std::int64_t at) {
            return static_cast<float>(std::clamp<std::int64_t>(at - slot.begin, -1, kTile + 1));
        };
        mask_tile(scores + i * kTile, {inside(first), inside(reach.end(position)), inside(reach.sinks)});
    }
}

// What earlier chunks added up to shrinks as the maximum grows.
inline void shrink_values(const Pass& pass) {
    for (int r = 0; r < pass.rows; ++r) {
        if (pass.work.shrink[r] == 1) continue;
        float* values = pass.values(r);
        for (int d = 0; d < pass.layer.v.dim; d += W) store(values + d, load(values + d) * all(pass.work.shrink[r]));
    }
}

// weigh for V in int8, or in int4 with `Zero`: weights times the scales of values, as whole numbers that put(j, numbers)
// stores.
template <bool Zero, class Put>
INLINE F weigh_whole(const Workspace& work, int r, float* scores, int count, const Below& below, Ahead& ahead, const Put& put) {
    F most_scaled = F{}, zeros = F{};
    const auto keep = [&](int j, F weights) __attribute__((always_inline)) {
        const F scaled = weights * load(work.v_scale + j);
        store(scores + j, scaled);
        most_scaled = larger(scaled, most_scaled);
        if constexpr (Zero) zeros += weights * load(work.v_zero + j);
        return weights;
    };
    const F total = weigh_row(scores, count, below, ahead, keep);
    if constexpr (Zero) work.zeros[r] = sum_of(zeros);
    work.weight_scale[r] = quantise_row(scores, count, most_scaled, put);
    return total;
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

// All stages of a chunk for one band. W rows at a time become weights, as each of them has a lane of its own then.
APART void read_band(Keys& keys, Values& values, Pass& pass, const Chunk& chunk, Ahead& ahead) {
    const Workspace& work = pass.work;
    const float factor = keys.factor(pass);
    keys.multiply(pass, chunk, ahead);
    for (int row = 0; row < pass.rows; row += W) {
        const int rows = std::min(W, pass.rows - row);
        F lanes[W] = {};
        for (int i = 0; i < rows; ++i) {
            lanes[i] = keys.score(pass, chunk, row + i);
            if (!chunk.masked && pass.layer.softcap <= 0) continue;
            mask_row(pass, chunk, row + i);
            lanes[i] = largest_in_row(pass.scores(row + i), chunk.count * kTile);
        }
        const F before = load(work.best + row), now = larger(joined_each<Largest>(lanes, rows) * all(factor), before);
        store(work.best + row, now);
        for (int i = 0; i < rows; ++i) lanes[i] = values.weigh(pass, chunk, row + i, {factor, work.best[row + i]}, ahead);
        const F shrink = exp2(before - now);
        store(work.shrink + row, shrink);
        store(work.sum + row, load(work.sum + row) * shrink + joined_each<Sum>(lanes, rows));
    }
    values.multiply(pass, chunk, ahead);
}

// Slots that a band reads at all: in a prompt its last tokens do not count for those before them.
inline int slots_of(const Pass& band, const Chunk& chunk, int piece) {
    const std::int64_t end = band.layer.reach.end(band.position(band.rows - 1));
    int count = chunk.count;
    while (count > 0 && chunk.slots[count - piece / kTile].begin >= end) count -= piece / kTile;
    return count;
}

inline void read_chunk(Keys& keys, Values& values, Pass& pass, Chunk& chunk, Ahead& ahead) {
    const int count = chunk.count;
    keys.prepare(pass, chunk, ahead), values.prepare(pass, chunk, ahead);
    for (int row = 0; row < pass.rows; row += pass.step.band, chunk.count = count) {
        Pass band = pass.band(row);
        chunk.count = slots_of(band, chunk, values.piece);
        if (chunk.count > 0) read_band(keys, values, band, chunk, ahead);
    }
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
        const int head = pass.head(r);
        const std::int64_t token = pass.tile.first_token + pass.token(r);
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

// What another split added up to joins what all before it did. best, sum: whole vectors can be read.
inline void merge_rows(const Workspace& work, int rows, const float* best, const float* sum, const float* values, int dim) {
    for (int row = 0; row < rows; row += W) {
        const F now = larger(load(work.all_best + row), load(best + row));
        const F mine = exp2(load(work.all_best + row) - now), other = exp2(load(best + row) - now);
        store(work.all_best + row, now);
        store(work.all_sum + row, load(work.all_sum + row) * mine + load(sum + row) * other);
        for (int r = row; r < std::min(rows, row + W); ++r) {
            float* to = work.all_values + static_cast<std::ptrdiff_t>(r) * dim;
            const float* from = values + static_cast<std::ptrdiff_t>(r) * dim;
            const F kept = all(mine[r - row]), added = all(other[r - row]);
            for (int d = 0; d < dim; d += W) store(to + d, load(to + d) * kept + load(from + d) * added);
        }
    }
}

// One item of a run. chunk: the first of the item, or one of a later item when it has none; in the end, the one after.
inline void attend_item(Keys& keys, Values& values, Pass& pass, int item, Reader& reader, Chunk*& chunk, Chunk*& next, Ahead& ahead) {
    const Tile& tile = pass.tile;
    const Workspace& work = pass.work;
    const int rows = pass.rows, dim = pass.layer.v.dim, only = pass.step.items[item].split;
    for (int row = 0; row < rows; row += pass.step.band) {
        Pass band = pass.band(row);
        keys.take_queries(band);
    }
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
        merge_rows(work, rows, work.best, work.sum, work.values, dim);
    }
    write_out(pass, work.all_best, work.all_sum, work.all_values);
}

APART void attend_run(Keys& keys, Values& values, const Step& step, const Run& run, float* workspace) {
    Reader reader(step, run, values.piece);
    Ahead ahead;
    Chunk chunks[2], *chunk = &chunks[0], *next = &chunks[1];
    reader.next(*chunk);
    for (int item = run.begin; item < run.end; ++item) {
        Pass pass(step, step.tiles[step.items[item].tile], workspace);
        attend_item(keys, values, pass, item, reader, chunk, next, ahead);
    }
}
