// The stages of a pass on vectors, for every form of K and V. Included by each level inside its namespace, after pass.h.

// 128 times a sum of whole numbers: by so much products with signed bytes as unsigned ones are too large.
inline I excess_of(float sum) { return all(static_cast<std::int32_t>(sum)) << 7; }

// Sums of products with int8 or, with `Zero`, int4.
template <int Planes, bool Zero>
INLINE I whole_of(const std::int32_t* high, const std::int32_t* low, I excess) {
    if constexpr (Planes == 1) return load(high);
    else if constexpr (Zero) return join(high, low);
    else return (I)((U)join(high, low) - (U)excess);
}

// q of all rows times the factor of scores: [rows][dim].
APART void take_floats(const Pass& pass) {
    const int dim = pass.layer.k.dim;
    const float factor = score_factor(pass.layer);
    for (int r = 0; r < pass.rows; ++r) {
        float* row = pass.work.q + static_cast<std::ptrdiff_t>(r) * dim;
        load_row(pass, r, row);
        for (int d = 0; d < dim; d += W) store(row + d, load(row + d) * all(factor));
    }
}

template <class Read>
struct VectorKeys final : Keys {
    using Format = typename Multiplied<typename Read::Format>::Type;
    using T = typename Read::T;
    using X = typename Format::X;
    static constexpr int planes = Format::kPlanes;
    const Read read;

    explicit VectorKeys(const Read& read) : read(read) {}

    // q times the factor of scores. int8: two planes of bytes, or 16-bit numbers in pairs of dimensions (0, 2), (1, 3); int4:
    // four of the first half, then four of the second.
    void take_queries(Pass& pass) override {
        [[maybe_unused]] const int dim = pass.layer.k.dim;
        if constexpr (planes == 2) {
            for (int r = 0; r < pass.rows; ++r) {
                auto* high = reinterpret_cast<std::int32_t*>(pass.work.q) + r * dim / 4;
                auto* low = high + pass.rows * dim / 4;
                whole_planes(pass, r, reinterpret_cast<std::int8_t*>(high), reinterpret_cast<std::int8_t*>(low));
                if constexpr (Read::kZero) interleave_halves<1>(high, dim / 4), interleave_halves<1>(low, dim / 4);
            }
        } else if constexpr (Read::kQuantised) {
            auto* pairs = reinterpret_cast<std::int32_t*>(pass.work.q);
            for (int r = 0; r < pass.rows; ++r, pairs += dim / 2) {
                whole_row(pass, r, [&](int d, I whole) __attribute__((always_inline)) {
                    store_pairs(pairs + d / 2, whole & 0xFFFF);
                });
                if constexpr (Read::kZero) interleave_halves<2>(pairs, dim / 2);
            }
        } else {
            take_floats(pass);
        }
    }

    void prepare(Pass& pass, const Chunk& chunk, Ahead&) override {
        if constexpr (!Read::kTiled) {
            for (int i = 0; i < chunk.count; ++i) read.copy(pass.blocks, pass.layer.k, chunk.slots[i], true, copied(pass, i));
        }
        if constexpr (Read::kQuantised) load_scales(pass, chunk, pass.layer.k, chunk.k, pass.work.k_scale, pass.work.k_zero);
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const int dim = pass.layer.k.dim;
        const T* columns[kChunk / W];
        for (int i = 0; i < chunk.count; ++i) {
            const T* keys = Read::kTiled ? reinterpret_cast<const T*>(chunk.k.data[i]) : copied(pass, i);
            for (int c = 0; c < kTile / W; ++c) columns[i * (kTile / W) + c] = keys + c * W * Format::kPack;
        }
        const int steps = dim / Format::kRows;
        const Columns<Format> keys{columns, &steps, 1, chunk.count * (kTile / W), Format::kStep * kTile, kTile, true};
        product<Format>(keys, {reinterpret_cast<const X*>(pass.work.q), dim * Format::kParts / Format::kRows,
                               reinterpret_cast<X*>(pass.work.scores), kScoreStride}, planes * pass.rows, ahead);
    }

    F score(const Pass& pass, const Chunk& chunk, int r) const override {
        float* scores = pass.scores(r);
        if constexpr (!Read::kQuantised) return largest_in_row(scores, chunk.count * kTile);
        const auto* high = reinterpret_cast<const std::int32_t*>(scores);
        const auto* low = reinterpret_cast<const std::int32_t*>(pass.scores(pass.rows + r));
        const I excess = excess_of(pass.work.q_total[r]);
        return score_whole<Read::kZero>(pass, chunk, r, [&](int j) __attribute__((always_inline)) {
            return whole_of<planes, Read::kZero>(high + j, low + j, excess);
        });
    }

private:
    static T* copied(const Pass& pass, int slot) {
        return reinterpret_cast<T*>(pass.work.k_tiles) + slot * kTile * pass.layer.k.dim;
    }

    // Quads of `Size` words: 0, 1, 2, ... and half, half + 1, ... in turn.
    template <int Size>
    static void interleave_halves(std::int32_t* words, int count) {
        std::int32_t copy[kMaxDim / 2];
        std::copy(words, words + count, copy);
        for (int i = 0; i < count / 2; ++i) {
            const int to = i / Size * 2 * Size + i % Size;
            words[to] = copy[i], words[to + Size] = copy[count / 2 + i];
        }
    }
};

template <class Read>
struct VectorValues final : Values {
    using Format = typename Multiplied<typename Read::Format>::Type;
    using T = typename Read::T;
    using X = typename Format::X;
    static constexpr int planes = Format::kPlanes;
    const Read read;

    explicit VectorValues(const Read& read) : Values(kTile), read(read) {}

    void prepare([[maybe_unused]] Pass& pass, [[maybe_unused]] const Chunk& chunk, Ahead&) override {
        if constexpr (!Read::kTiled) {
            for (int i = 0; i < chunk.count; ++i) read.copy(pass.blocks, pass.layer.v, chunk.slots[i], false, copied(pass, i));
        }
        if constexpr (Read::kQuantised) load_scales(pass, chunk, pass.layer.v, chunk.v, pass.work.v_scale, pass.work.v_zero);
    }

    F weigh(Pass& pass, const Chunk& chunk, int r, const Below& below, Ahead& ahead) override {
        const Workspace& work = pass.work;
        const int count = chunk.count * kTile;
        float* scores = pass.scores(r);
        if constexpr (planes == 2) {
            auto* high = reinterpret_cast<std::int8_t*>(work.weights) + r * kChunk;
            auto* low = high + pass.rows * kChunk;
            I sum = I{};
            const auto put = [&](int j, I whole) __attribute__((always_inline)) {
                store_bytes(high + j, whole >> 7), store_bytes(low + j, whole & 127);
                sum += whole;
            };
            const F total = weigh_whole<Read::kZero>(work, r, scores, count, below, ahead, put);
            if constexpr (!Read::kZero) work.zeros[r] = sum_of(__builtin_convertvector(sum, F));
            return total;
        } else if constexpr (Read::kQuantised) {
            auto* pairs = reinterpret_cast<std::int32_t*>(work.weights) + r * (kChunk / 2);
            const auto put = [&](int j, I whole) __attribute__((always_inline)) { store_pairs(pairs + j / 2, whole); };
            return weigh_whole<Read::kZero>(work, r, scores, count, below, ahead, put);
        }
        const auto keep = [&](int j, F weights) __attribute__((always_inline)) { return store(scores + j, weights), weights; };
        return weigh_row(scores, count, below, ahead, keep);
    }

    // V of slot i as it lies, or a copy where it is plain or holds tokens that are not live.
    const T* values_of(const Pass& pass, const Chunk& chunk, int i) const {
        const Slot& slot = chunk.slots[i];
        if constexpr (!Read::kTiled) return copied(pass, i);
        const auto* values = reinterpret_cast<const T*>(chunk.v.data[i]);
        if constexpr (Read::kQuantised) return values;
        else return slot.live == kAllLive ? values : copy_live<typename Read::Format>(values, slot, pass.layer.v.dim, copied(pass, i));
    }

    // Tiles from slot i on that follow one another in memory, all of their tokens live.
    int run_of_tiles(const Chunk& chunk, int i, std::int64_t bytes) const {
        int run = 1;
        for (; i + run < chunk.count && (Read::kQuantised || chunk.slots[i + run].live == kAllLive); ++run)
            if (chunk.v.data[i + run] != chunk.v.data[i] + run * bytes) break;
        return run;
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        constexpr int most = kChunk / kTile;
        const Workspace& work = pass.work;
        const std::int64_t tile_bytes = kTile * pass.layer.v.vector_bytes();
        const T* tiles[most];
        int steps[most], runs = 0;
        for (int i = 0, count = 1; i < chunk.count; i += count, ++runs) {
            tiles[runs] = values_of(pass, chunk, i);
            count = 1;
            if constexpr (Read::kTiled) {
                if (Read::kQuantised || chunk.slots[i].live == kAllLive) count = run_of_tiles(chunk, i, tile_bytes);
            }
            steps[runs] = count * kTile;
        }
        if constexpr (!Read::kQuantised) {
            shrink_values(pass);
            multiply_columns<Format>(pass, tiles, steps, runs, pass.layer.v.dim, 0, work.scores, work.values, ahead);
        } else {
            const int dim = pass.layer.v.dim;
            if constexpr (Read::kZero) {
                multiply_columns<HalfCodes<false>>(pass, tiles, steps, runs, dim / 2, 0, work.weights, work.exact, ahead);
                multiply_columns<HalfCodes<true>>(pass, tiles, steps, runs, dim / 2, dim / 2, work.weights, work.exact, ahead);
            } else {
                multiply_columns<Format>(pass, tiles, steps, runs, dim, 0, work.weights, work.exact, ahead);
            }
            for (int r = 0; r < pass.rows; ++r) {
                const auto* high = reinterpret_cast<const std::int32_t*>(work.exact) + r * dim;
                const std::int32_t* low = high + pass.rows * dim;
                const I excess = excess_of(work.zeros[r]);
                add_exact<Read::kZero>(pass, r, [&](int d) __attribute__((always_inline)) {
                    return whole_of<planes, Read::kZero>(high + d, low + d, excess);
                });
            }
        }
    }

private:
    static T* copied(const Pass& pass, int slot) {
        return reinterpret_cast<T*>(pass.work.v_tiles) + slot * kTile * pass.layer.v.dim;
    }

    // sums[rows][first ...] (+)= weights . columns of the tiles, `count` of them, of so many tokens each.
    template <class Part>
    void multiply_columns(const Pass& pass, const T* const* tiles, const int* tokens, int runs, int count, int first,
                          const float* weights, float* sums, Ahead& ahead) const {
        constexpr int most = kChunk / kTile;
        const typename Part::T* columns[most * kMaxDim / W];
        int steps[most];
        for (int run = 0; run < runs; ++run) {
            for (int c = 0; c < count / W; ++c)
                columns[run * (count / W) + c] = reinterpret_cast<const typename Part::T*>(tiles[run]) + c * W * Part::kPack;
            steps[run] = tokens[run] / Part::kRows;
        }
        const Columns<Part> tile{columns, steps, runs, count / W, Part::kStep * count, count, Read::kQuantised};
        using X = typename Part::X;
        const int dim = pass.layer.v.dim, stride = Read::kQuantised ? kChunk * Part::kParts / Part::kRows : kScoreStride;
        product<Part>(tile, {reinterpret_cast<const X*>(weights), stride, reinterpret_cast<X*>(sums) + first, dim},
                      planes * pass.rows, ahead);
    }
};
