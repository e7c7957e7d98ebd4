// The stages of a pass on vectors, for every form of K and V. Included by each level inside its namespace, after pass.h.

template <class Read>
struct VectorKeys final : Keys {
    using Format = typename Read::Format;
    using T = typename Read::T;
    using X = typename Format::X;

    // q times the factor of scores. int8: 16-bit numbers in pairs of dimensions (0, 2), (1, 3).
    void take_queries(Pass& pass) override {
        const int dim = pass.layer.k.dim;
        if constexpr (Read::kQuantised) {
            auto* pairs = reinterpret_cast<std::int32_t*>(pass.work.q);
            for (int r = 0; r < pass.rows; ++r, pairs += dim / 2) {
                const auto put = [&](int d, I whole) __attribute__((always_inline)) { store_pairs(pairs + d / 2, whole & 0xFFFF); };
                pass.work.q_scale[r] = whole_row(pass, r, put);
            }
        } else {
            const float factor = score_factor(pass.layer);
            for (int r = 0; r < pass.rows; ++r) {
                float* row = pass.work.q + static_cast<std::ptrdiff_t>(r) * dim;
                load_row(pass, r, row);
                for (int d = 0; d < dim; d += W) store(row + d, load(row + d) * all(factor));
            }
        }
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const int dim = pass.layer.k.dim;
        const T* columns[kChunk / W];
        for (int i = 0; i < chunk.count; ++i) {
            const T* keys = reinterpret_cast<const T*>(chunk.k.data[i]);
            if constexpr (!Read::kTiled) {
                T* const to = reinterpret_cast<T*>(pass.work.tiles) + i * kTile * dim;
                keys = Read::copy(pass.blocks, pass.layer.k, chunk.slots[i], true, to);
            }
            for (int c = 0; c < kTile / W; ++c) columns[i * (kTile / W) + c] = keys + c * W * Format::kPack;
        }
        const int steps = dim / Format::kRows;
        const Columns<Format> keys{columns, &steps, 1, chunk.count * (kTile / W), Format::kRows * kTile, kTile, true};
        product<Format>(keys, {reinterpret_cast<const X*>(pass.work.q), dim * 2 / Format::kRows,
                               reinterpret_cast<X*>(pass.work.scores), kChunk}, pass.rows, ahead);
        if constexpr (Read::kQuantised) load_scales(pass, chunk, pass.layer.k, chunk.k, pass.work.k_scale);
    }

    F score(const Pass& pass, const Chunk& chunk, int r) const override {
        float* scores = pass.scores(r);
        const int count = chunk.count * kTile;
        if constexpr (!Read::kQuantised) return largest_in_row(scores, count);
        const F factor = all(pass.work.q_scale[r]);
        return score_row(scores, count, [&](int j) __attribute__((always_inline)) {
            const I exact = load(reinterpret_cast<const std::int32_t*>(scores) + j);
            return __builtin_convertvector(exact, F) * (factor * load(pass.work.k_scale + j));
        });
    }
};

template <class Read>
struct VectorValues final : Values {
    using Format = typename Read::Format;
    using T = typename Read::T;
    using X = typename Format::X;

    VectorValues() : Values(kTile) {}

    void prepare([[maybe_unused]] Pass& pass, [[maybe_unused]] const Chunk& chunk) override {
        if constexpr (Read::kQuantised) load_scales(pass, chunk, pass.layer.v, chunk.v, pass.work.v_scale);
    }

    float weigh(Pass& pass, const Chunk& chunk, int r, F most, Ahead& ahead) override {
        const Workspace& work = pass.work;
        const int count = chunk.count * kTile;
        float* scores = pass.scores(r);
        if constexpr (Read::kQuantised) {
            auto* pairs = reinterpret_cast<std::int32_t*>(work.weights) + r * (kChunk / 2);
            const auto put = [&](int j, I whole) __attribute__((always_inline)) { store_pairs(pairs + j / 2, whole); };
            return weigh_whole(work, r, scores, count, most, ahead, put);
        }
        const auto keep = [&](int j, F weights) __attribute__((always_inline)) { return store(scores + j, weights), weights; };
        const float shrink = weigh_row(scores, count, most, work.best[r], work.sum[r], ahead, keep);
        shrink_values(pass, r, shrink);
        return shrink;
    }

    // V of slot i as it lies, or a copy where it is plain or holds tokens that are not live.
    const T* values_of(const Pass& pass, const Chunk& chunk, int i) const {
        const Slot& slot = chunk.slots[i];
        const int dim = pass.layer.v.dim;
        T* copied = reinterpret_cast<T*>(pass.work.tiles) + i * kTile * dim;
        if constexpr (Read::kTiled) {
            const auto* values = reinterpret_cast<const T*>(chunk.v.data[i]);
            return Read::kQuantised || slot.live == kAllLive ? values : copy_live<Read>(values, slot, dim, copied);
        } else {
            return Read::copy(pass.blocks, pass.layer.v, slot, false, copied);
        }
    }

    // Tiles from slot i on that follow one another in memory, all of their tokens live.
    int run_of_tiles(const Pass& pass, const Chunk& chunk, int i) const {
        int run = 1;
        const std::int64_t bytes = kTile * pass.layer.v.vector_bytes();
        for (; i + run < chunk.count && (Read::kQuantised || chunk.slots[i + run].live == kAllLive); ++run)
            if (chunk.v.data[i + run] != chunk.v.data[i] + run * bytes) break;
        return run;
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        constexpr int most = kChunk / kTile;
        const Workspace& work = pass.work;
        const int dim = pass.layer.v.dim, count = dim / W;
        const T* columns[most * kMaxDim / W];
        int steps[most], runs = 0;
        for (int i = 0, tiles = 1; i < chunk.count; i += tiles, ++runs) {
            const T* values = values_of(pass, chunk, i);
            tiles = 1;
            if constexpr (Read::kTiled) {
                if (Read::kQuantised || chunk.slots[i].live == kAllLive) tiles = run_of_tiles(pass, chunk, i);
            }
            for (int c = 0; c < count; ++c) columns[runs * count + c] = values + c * W * Format::kPack;
            steps[runs] = tiles * kTile / Format::kRows;
        }
        const Columns<Format> tile{columns, steps, runs, count, Format::kRows * dim, dim, Read::kQuantised};
        const float* weights = Read::kQuantised ? work.weights : work.scores;
        float* sums = Read::kQuantised ? work.exact : work.values;
        product<Format>(tile, {reinterpret_cast<const X*>(weights), kChunk * 2 / Format::kRows, reinterpret_cast<X*>(sums), dim},
                        pass.rows, ahead);
        if constexpr (Read::kQuantised) {
            for (int r = 0; r < pass.rows; ++r) {
                const auto* exact = reinterpret_cast<const std::int32_t*>(work.exact) + r * dim;
                add_exact(pass, r, [&](int d) { return load(exact + d); });
            }
        }
    }
};
