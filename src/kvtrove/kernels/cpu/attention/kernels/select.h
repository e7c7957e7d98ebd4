// Which blocks the queries of a tile read (Selection): promises of all blocks before their own, then the best of them. Included
// by each level inside its namespace, after pass.h.

constexpr int kBoundsAhead = 8;  // blocks whose bounds are asked for before they are read

// Memory of one thread. The rows of a tile choose together, so that bounds are read once for them.
struct Choice {
    float *up, *down;  // [rows][k.dim], what is positive of a query, and what is negative
    float *low, *high;  // [k.dim], bounds of a block
    float* sums;        // [rows], and a vector behind them
    float* promises;    // [tokens][blocks]
    float* sorted;      // [blocks]

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, std::int64_t blocks, float* base) {
        std::size_t at = 0;
        const std::size_t rows = max_rows, dim = layer.k.dim, tokens = rows / layer.group();
        const auto take = [&](float*& part, std::size_t count) {
            part = base == nullptr ? nullptr : base + at;
            at += (count + 15) / 16 * 16;
        };
        take(up, rows * dim), take(down, rows * dim), take(low, dim), take(high, dim), take(sums, rows + 16);
        take(promises, tokens * blocks), take(sorted, blocks);
        return at;
    }
};

inline std::size_t choice_floats(const Layer& layer, int max_rows, std::int64_t blocks) {
    return Choice().carve(layer, max_rows, blocks, nullptr);
}

inline void widen_bfloat16(const std::uint16_t* from, int dim, float* to) {
    for (int d = 0; d < dim; d += W) {
        const H halves = *reinterpret_cast<const UnalignedH*>(from + d);
        store(to + d, (F)((__builtin_convertvector(halves, I)) << 16));
    }
}

inline void ask_for(const std::uint8_t* from, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, 0, 2);
}

// What a key within the bounds scores at most with each row: one order of sums, whatever the rows.
inline void bound_products(const Choice& choice, int rows, int dim) {
    F lanes[W];
    for (int row = 0; row < rows; row += W) {
        const int some = std::min(W, rows - row);
        for (int i = 0; i < W; ++i) lanes[i] = F{};
        for (int i = 0; i < some; ++i) {
            const float *up = choice.up + (row + i) * dim, *down = choice.down + (row + i) * dim;
            F above = F{}, below = F{};
            for (int d = 0; d < dim; d += W) {
                above = fma(load(up + d), load(choice.high + d), above);
                below = fma(load(down + d), load(choice.low + d), below);
            }
            lanes[i] = above + below;
        }
        store(choice.sums + row, joined_each<Sum>(lanes, some));
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
    const auto bounds = [&](const Plane& plane, std::int64_t block) {
        return plane.data + table[block] * plane.block_stride + tile.kv_head * dim * 2;
    };
    const bool all_read = select.room(last) >= last;
    for (std::int64_t block = 0; block < last && !all_read; ++block) {
        if (block + kBoundsAhead < last) {
            for (const Plane* plane : {&select.low, &select.high}) ask_for(bounds(*plane, block + kBoundsAhead), 2 * dim);
        }
        widen_bfloat16(reinterpret_cast<const std::uint16_t*>(bounds(select.low, block)), dim, choice.low);
        widen_bfloat16(reinterpret_cast<const std::uint16_t*>(bounds(select.high, block)), dim, choice.high);
        bound_products(choice, rows, dim);
        for (int token = 0; token < tile.tokens; ++token) {
            float best = kNothing;  // of a query that is no number, too
            for (int r = token * group; r < (token + 1) * group; ++r) best = choice.sums[r] > best ? choice.sums[r] : best;
            choice.promises[token * step.kept.blocks + block] = best;
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
