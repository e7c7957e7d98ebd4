// Which blocks the queries of a tile read (Selection): promises of all blocks before their own, then the best of them. Included
// by each level inside its namespace, after pass.h.

constexpr int kBlocksAhead = 16;  // blocks whose summaries are asked for before they are read
constexpr int kBlocksAtOnce = 8;  // whose lanes are joined together
constexpr int kRowsAtOnce = 8;    // whose sums stay in registers

// Memory of one thread. The rows of a tile choose together, so that summaries are read once for them.
struct Choice {
    float *up, *down;  // [rows][k.dim], of queries: what is positive and what is negative, or their channels
    float* scores;     // [kBlocksAtOnce][rows], and a vector behind them
    float* promises;   // [tokens][blocks]
    float* sorted;     // [blocks]

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, std::int64_t blocks, float* base) {
        std::size_t at = 0;
        const std::size_t rows = max_rows, dim = layer.k.dim, tokens = rows / layer.group();
        const auto take = [&](float*& part, std::size_t count) {
            part = base == nullptr ? nullptr : base + at;
            at += (count + 15) / 16 * 16;
        };
        take(up, rows * dim), take(down, rows * dim), take(scores, kBlocksAtOnce * rows + 16);
        take(promises, tokens * blocks), take(sorted, blocks);
        return at;
    }
};

inline std::size_t choice_floats(const Layer& layer, int max_rows, std::int64_t blocks) {
    return Choice().carve(layer, max_rows, blocks, nullptr);
}

INLINE F widened(const std::uint16_t* bfloat16) {
    const H halves = *reinterpret_cast<const UnalignedH*>(bfloat16);
    return (F)(__builtin_convertvector(halves, I) << 16);
}

inline void ask_for(const std::uint8_t* from, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, 0, 2);
}

// Vectors whose joined lanes are numbers one after the other.
template <class Joined>
struct Joining {
    F lanes[W];
    int count = 0;
    float* to;

    INLINE void add(F lane) {
        lanes[count++] = lane;
        if (count == W) end();
    }
    APART void end() {
        for (int i = count; i < W; ++i) lanes[i] = F{};
        if (count > 0) store(to, joined_each<Joined>(lanes, count));
        to += count, count = 0;
    }
};

// What a key within its bounds [2][dim] scores at most with each row.
struct ByBounds {
    using Joined = Sum;
    int dim;

    explicit ByBounds(const Layer& layer) : dim(layer.k.dim) {}
    static const Plane& plane(const Selection& select) { return select.bounds; }
    std::int64_t bytes() const { return 4 * dim; }

    void take(const Layer&, int, const float* query, float* up, float* down) const {
        for (int d = 0; d < dim; d += W) {
            store(up + d, larger(load(query + d), F{})), store(down + d, smaller(load(query + d), F{}));
        }
    }

    template <int R>
    INLINE void rows(const float* up, const float* down, const std::uint16_t* bounds, Joining<Sum>& sums) const {
        F total[R];
        for (int r = 0; r < R; ++r) total[r] = F{};
        for (int d = 0; d < dim; d += W) {
            const F low = widened(bounds + d), high = widened(bounds + dim + d);
            each<R>([&](auto r) __attribute__((always_inline)) {
                constexpr int row = decltype(r)::value;
                total[row] = fma(load(up + row * dim + d), high, total[row]);
                total[row] = fma(load(down + row * dim + d), low, total[row]);
            });
        }
        for (int r = 0; r < R; ++r) sums.add(total[r]);
    }
};

// What the block's best key scores with each row, in the channels of its labels [channels][size].
struct ByLabels {
    using Joined = Largest;
    int dim, channels, size;

    explicit ByLabels(const Layer& layer)
        : dim(layer.k.dim), channels(layer.select.num_channels), size(layer.block_size) {}
    static const Plane& plane(const Selection& select) { return select.labels; }
    std::int64_t bytes() const { return std::int64_t{2} * channels * size; }

    void take(const Layer& layer, int kv_head, const float* query, float* up, float*) const {
        for (int c = 0; c < channels; ++c) up[c] = query[layer.select.channels[kv_head * channels + c]];
    }

    template <int R>
    INLINE void rows(const float* up, const float*, const std::uint16_t* labels, Joining<Largest>& most) const {
        F best[R];
        for (int r = 0; r < R; ++r) best[r] = all(kNothing);
        for (int j = 0; j < size; j += W) {
            F total[R];
            for (int r = 0; r < R; ++r) total[r] = F{};
            for (int c = 0; c < channels; ++c) {
                const F label = widened(labels + c * size + j);
                each<R>([&](auto r) __attribute__((always_inline)) {
                    constexpr int row = decltype(r)::value;
                    total[row] = fma(all(up[row * dim + c]), label, total[row]);
                });
            }
            for (int r = 0; r < R; ++r) best[r] = larger(total[r], best[r]);
        }
        for (int r = 0; r < R; ++r) most.add(best[r]);
    }
};

template <int R = kRowsAtOnce, class By>
INLINE void some_rows(const By& by, int rows, const float* up, const float* down, const std::uint16_t* from,
                      Joining<typename By::Joined>& joining) {
    if (rows == R) return by.template rows<R>(up, down, from, joining);
    if constexpr (R > 1) some_rows<R - 1>(by, rows, up, down, from, joining);
}

// Row r of a tile's queries as they came: [k.dim].
inline void query_of(const Step& step, const Tile& tile, int r, float* query) {
    const Rows& q = step.q;
    const int group = step.layer.group(), dim = step.layer.k.dim, head = tile.kv_head * group + r % group;
    floats_of(q.data + (tile.first_token + r / group) * q.stride + head * dim * bytes_of(q.element), q.element, dim, query);
}

// Where the summaries of a sequence's blocks lie, for the head of a tile.
struct Summaries {
    const std::int32_t* table;
    const std::uint8_t* data;
    std::ptrdiff_t stride;

    Summaries(const Step& step, const Tile& tile, const Plane& plane, std::int64_t bytes)
        : table(step.batch.table + tile.sequence * step.batch.table_width), data(plane.data + tile.kv_head * bytes),
          stride(plane.block_stride) {}
    const std::uint8_t* operator()(std::int64_t block) const { return data + table[block] * stride; }
};

// Promises of the blocks before `last`, for all tokens of a tile.
template <class By>
void promise(const Step& step, const Tile& tile, const Choice& choice, std::int64_t last, const By& by) {
    const Layer& layer = step.layer;
    const int rows = step.rows(tile), group = layer.group(), dim = layer.k.dim;
    const Plane& plane = By::plane(layer.select);
    for (int r = 0; r < rows; ++r) {
        float query[kMaxDim];
        query_of(step, tile, r, query);
        by.take(layer, tile.kv_head, query, choice.up + r * dim, choice.down + r * dim);
    }
    const Summaries summary{step, tile, plane, by.bytes()};
    for (std::int64_t first = 0; first < last; first += kBlocksAtOnce) {
        const std::int64_t stop = std::min(first + kBlocksAtOnce, last);
        Joining<typename By::Joined> joining;
        joining.to = choice.scores;
        for (std::int64_t block = first; block < stop; ++block) {
            if (block + kBlocksAhead < last) ask_for(summary(block + kBlocksAhead), by.bytes());
            const auto* from = reinterpret_cast<const std::uint16_t*>(summary(block));
            for (int row = 0; row < rows; row += kRowsAtOnce) {
                some_rows(by, std::min(kRowsAtOnce, rows - row), choice.up + row * dim, choice.down + row * dim, from, joining);
            }
        }
        joining.end();
        const float* score = choice.scores;
        for (std::int64_t block = first; block < stop; ++block) {
            for (int token = 0; token < tile.tokens; ++token) {
                float best = kNothing;  // of a query that is no number, too
                for (int r = 0; r < group; ++r, ++score) best = *score > best ? *score : best;
                choice.promises[token * step.kept.blocks + block] = best;
            }
        }
    }
}

// Sets the bits of the `room` largest promises, of equal ones the first.
inline void keep_best(const float* promises, float* sorted, std::int64_t count, std::int64_t room, std::uint64_t* bits) {
    const auto keep = [&](std::int64_t block) { bits[block / 64] |= std::uint64_t{1} << block % 64; };
    if (count <= room) {
        for (std::int64_t block = 0; block < count; ++block) keep(block);
        return;
    }
    if (room == 0) return;
    std::copy(promises, promises + count, sorted);
    std::nth_element(sorted, sorted + room - 1, sorted + count, [](float a, float b) { return a > b; });
    const float least = sorted[room - 1];
    std::int64_t equal = room;
    for (std::int64_t block = 0; block < count; ++block) equal -= promises[block] > least;
    for (std::int64_t block = 0; block < count; ++block) {
        if (promises[block] > least || (promises[block] == least && equal-- > 0)) keep(block);
    }
}

// Fills the rows of step.kept for a tile: of each token, and of all together. by_bounds(step, tile, choice, last): promises
// where blocks have bounds.
template <class Promise>
void choose_by(const Step& step, std::int64_t number, float* workspace, const Promise& by_bounds) {
    const Layer& layer = step.layer;
    const Tile& tile = step.tiles[number];
    const Selection& select = layer.select;
    const std::int64_t size = layer.block_size, words = step.kept.words, last = (tile.position + tile.tokens - 1) / size;
    Choice choice;
    choice.carve(layer, step.max_rows, step.kept.blocks, workspace);
    if (select.room(last) < last) {
        if (select.labels.data) promise(step, tile, choice, last, ByLabels(layer));
        else by_bounds(step, tile, choice, last);
    }
    std::uint64_t *any = step.kept.any(number), *every = step.kept.every(number);
    std::fill(any, any + words, 0), std::fill(every, every + words, ~std::uint64_t{0});
    for (int token = 0; token < tile.tokens; ++token) {
        const std::int64_t own = (tile.position + token) / size;
        std::uint64_t* bits = step.kept.row(tile.first_token + token, tile.kv_head);
        std::fill(bits, bits + words, 0);
        keep_best(choice.promises + token * step.kept.blocks, choice.sorted, own, select.room(own), bits);
        bits[own / 64] |= std::uint64_t{1} << own % 64;
        for (std::int64_t i = 0; i < words; ++i) any[i] |= bits[i], every[i] &= bits[i];
    }
}

inline void choose(const Step& step, std::int64_t number, float* workspace) {
    choose_by(step, number, workspace, [](const Step& step, const Tile& tile, const Choice& choice, std::int64_t last) {
        promise(step, tile, choice, last, ByBounds(step.layer));
    });
}
