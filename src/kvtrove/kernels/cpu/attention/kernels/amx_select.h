// Promises of blocks (select.h) on AMX tiles, by bounds: all rows of a tile are multiplied with sixteen blocks at once.
// Included by levels/avx512.cpp inside its namespace, after amx_stages.h.
//
//   [down | up] of each row [2][dim] bf16   .   [low | high] of 16 blocks, transposed: what K in tiles looks like
//
// A query in float32 or float16 becomes the sum of two bf16, rows of their own.

constexpr int kBlocksTogether = 64;  // as many as four sums in registers take

// Memory of one thread beside that of Choice.
struct TileChoice {
    float* rows;    // [products][2][dim] bf16
    float* blocks;  // [kBlocksTogether][2][dim] bf16, transposed
    float* scores;  // [products][kBlocksTogether]

    static std::size_t products(int rows) { return RowTiles(2 * rows).padded(); }

    // Returns the floats needed. base: nullptr to ask only.
    std::size_t carve(const Layer& layer, int max_rows, float* base) {
        const std::size_t dim = layer.k.dim, most = products(max_rows) + kTile;  // tiles of fewer rows may end behind those of more
        rows = base, blocks = rows + most * dim, scores = blocks + kBlocksTogether * dim;
        return (most + kBlocksTogether) * dim + most * kBlocksTogether;
    }
};

inline std::size_t tile_choice_floats(const Layer& layer, int max_rows, std::int64_t blocks) {
    return choice_floats(layer, max_rows, blocks) + TileChoice().carve(layer, max_rows, nullptr);
}

// Summaries of sixteen blocks as tiles [2 * dim / 32][16][16][2].
template <class Summary>
void transpose_blocks(const Summary& summary, int dim, float* to) {
    for (int d = 0; d < dim; d += kTile, to += kTile * kTile) {
        F x[kTile];
        for (int i = 0; i < kTile; ++i) x[i] = load(reinterpret_cast<const float*>(summary(i)) + d);
        transpose(x);
        for (int i = 0; i < kTile; ++i) store(to + i * kTile, x[i]);
    }
}

// Returns how many planes the rows have.
inline int split_queries(const Step& step, const Tile& tile, float* rows) {
    const int planes = step.q.element == Element::bfloat16 ? 1 : 2, count = step.rows(tile), dim = step.layer.k.dim;
    auto* const halves = reinterpret_cast<std::uint16_t*>(rows);
    std::fill(halves, halves + 2 * dim * RowTiles(planes * count).padded(), std::uint16_t{0});
    for (int r = 0; r < count; ++r) {
        float query[kMaxDim];
        query_of(step, tile, r, query);
        for (int d = 0; d < dim; ++d) {
            std::uint16_t* to = halves + r * 2 * dim + (query[d] > 0 ? dim : 0) + d;
            *to = bfloat16_of_float(query[d]);
            if (planes == 2) to[count * 2 * dim] = bfloat16_of_float(query[d] - float_of_bfloat16(*to));
        }
    }
    return planes;
}

inline void promise_on_tiles(const Step& step, const Tile& tile, const Choice& choice, std::int64_t last, const TileChoice& work) {
    const Layer& layer = step.layer;
    const int group = layer.group(), count = step.rows(tile), dim = layer.k.dim, tiles_each = dim / kTile;
    const int planes = split_queries(step, tile, work.rows);
    const RowTiles rows(planes * count);
    const Summaries summary(step, tile, layer.select.bounds, 4 * dim);
    Configuration registers;
    registers.use(rows.size, tiles::kRowBytes);
    Ahead nothing;
    for (std::int64_t first = 0; first < last; first += kBlocksTogether) {
        const int columns = static_cast<int>((std::min<std::int64_t>(kBlocksTogether, last - first) + kTile - 1) / kTile);
        for (int c = 0; c < columns; ++c) {
            const std::int64_t from = first + c * kTile;
            for (int i = 0; i < kTile && from + kBlocksTogether + i < last; ++i) ask_for(summary(from + kBlocksTogether + i), 4 * dim);
            transpose_blocks([&](int i) { return summary(std::min(from + i, last - 1)); }, dim, work.blocks + c * kTile * dim);
        }
        cover(rows.tiles, columns, [&](auto r, auto n, int row_tile, int column) {
            constexpr int R = decltype(r)::value, N = decltype(n)::value;
            each<R * N>([](auto sum) { tiles::zero<decltype(sum)::value>(); });
            const auto* blocks = reinterpret_cast<const std::uint8_t*>(work.blocks + column * kTile * dim);
            multiply<Bfloat16Tiles, R, N>(
                rows.left(work.rows, row_tile, 4 * dim, tiles::kRowBytes), tiles_each, tiles::kRowBytes, 0, nothing,
                [&](int i, int along) { return blocks + (along * tiles_each + i) * kTile * tiles::kRowBytes; });
            float* to = work.scores + row_tile * rows.size * kBlocksTogether + column * kTile;
            each<R * N>([&](auto sum) {
                constexpr int row = decltype(sum)::value / N, along = decltype(sum)::value % N;
                tiles::store<decltype(sum)::value>(to + row * rows.size * kBlocksTogether + along * kTile, kBlocksTogether * 4);
            });
        });
        for (int token = 0; token < tile.tokens; ++token) {
            const float* scores = work.scores + token * group * kBlocksTogether;
            float* to = choice.promises + token * step.kept.blocks + first;
            for (int at = 0; at < columns * kTile; at += W) {
                F best = all(kNothing);  // of a query that is no number, too
                for (int r = 0; r < group; ++r) {
                    const float* score = scores + r * kBlocksTogether + at;
                    best = larger(planes == 1 ? load(score) : load(score) + load(score + count * kBlocksTogether), best);
                }
                if (first + at + W <= last) store(to + at, best);
                else for (int i = 0; first + at + i < last; ++i) to[at + i] = best[i];
            }
        }
    }
}

// Where heads do not fill tiles, vectors promise.
inline void choose_on_tiles(const Step& step, std::int64_t number, float* workspace) {
    if (step.layer.k.dim % kTile) return choose(step, number, workspace);
    TileChoice work;
    work.carve(step.layer, step.max_rows, workspace + choice_floats(step.layer, step.max_rows, step.kept.blocks));
    choose_by(step, number, workspace, [&](const Step& step, const Tile& tile, const Choice& choice, std::int64_t last) {
        promise_on_tiles(step, tile, choice, last, work);
    });
}
