// Which blocks the queries of a tile read (Selection): promises of all blocks before their own, then the best of them. Included
// by each level inside its namespace, after pass.h.

constexpr int kBoundsAhead = 16;  // blocks whose bounds are asked for before they are read
constexpr int kBlocksAtOnce = 8;   // whose sums are joined together
constexpr int kRowsAtOnce = 8;     // whose sums stay in registers

// Memory of one thread. The rows of a tile choose together, so that bounds are read once for them.
struct Choice {
    float *up, *down;  // [rows][k.dim], what is positive of a query, and what is negative
    float* sums;       // [kBlocksAtOnce][rows], and a vector behind them
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
        take(up, rows * dim), take(down, rows * dim), take(sums, kBlocksAtOnce * rows + 16);
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

// Vectors whose sums are numbers one after the other.
struct Joining {
    F lanes[W];
    int count = 0;
    float* to;

    INLINE void add(F lane) {
        lanes[count++] = lane;
        if (count == W) end();
    }
    void end() {
        for (int i = count; i < W; ++i) lanes[i] = F{};
        if (count > 0) store(to, joined_each<Sum>(lanes, count));
        to += count, count = 0;
    }
};

// What a key within the bounds [2][dim] scores at most with each of R rows: one order of sums, whatever the rows.
template <int R>
INLINE void bound_rows(const float* up, const float* down, const std::uint16_t* bounds, int dim, Joining& sums) {
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

template <int R = kRowsAtOnce>
INLINE void bound_rows(int rows, const float* up, const float* down, const std::uint16_t* bounds, int dim, Joining& sums) {
    if (rows == R) return bound_rows<R>(up, down, bounds, dim, sums);
    if constexpr (R > 1) bound_rows<R - 1>(rows, up, down, bounds, dim, sums);
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

// Fills the rows of step.kept for a tile: of each token, and of all together.
inline void choose(const Step& step, std::int64_t number, float* workspace) {
    const Layer& layer = step.layer;
    const Tile& tile = step.tiles[number];
    const Selection& select = layer.select;
    const std::int64_t size = layer.block_size, words = step.kept.words, last = (tile.position + tile.tokens - 1) / size;
    const int rows = step.rows(tile), group = layer.group(), dim = layer.k.dim;
    Choice choice;
    choice.carve(layer, step.max_rows, step.kept.blocks, workspace);
    for (int r = 0; r < rows; ++r) {
        const Rows& q = step.q;
        const int head = tile.kv_head * group + r % group;
        const auto* from = q.data + (tile.first_token + r / group) * q.stride + head * dim * bytes_of(q.element);
        float *up = choice.up + r * dim, *down = choice.down + r * dim;
        floats_of(from, q.element, dim, up);
        for (int d = 0; d < dim; d += W) store(down + d, smaller(load(up + d), F{})), store(up + d, larger(load(up + d), F{}));
    }
    const std::int32_t* table = step.batch.table + tile.sequence * step.batch.table_width;
    const auto bounds = [&](std::int64_t block) {
        return select.bounds.data + table[block] * select.bounds.block_stride + tile.kv_head * dim * 4;
    };
    const bool all_read = select.room(last) >= last;
    for (std::int64_t first = 0; first < last && !all_read; first += kBlocksAtOnce) {
        const std::int64_t stop = std::min(first + kBlocksAtOnce, last);
        Joining sums;
        sums.to = choice.sums;
        for (std::int64_t block = first; block < stop; ++block) {
            if (block + kBoundsAhead < last) ask_for(bounds(block + kBoundsAhead), 4 * dim);
            const auto* here = reinterpret_cast<const std::uint16_t*>(bounds(block));
            for (int row = 0; row < rows; row += kRowsAtOnce) {
                const int some = std::min(kRowsAtOnce, rows - row);
                bound_rows(some, choice.up + row * dim, choice.down + row * dim, here, dim, sums);
            }
        }
        sums.end();
        const float* sum = choice.sums;
        for (std::int64_t block = first; block < stop; ++block) {
            for (int token = 0; token < tile.tokens; ++token) {
                float best = kNothing;  // of a query that is no number, too
                for (int r = 0; r < group; ++r, ++sum) best = *sum > best ? *sum : best;
                choice.promises[token * step.kept.blocks + block] = best;
            }
        }
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
