// The stages of a pass on AMX tiles, for tiled blocks of bf16 and int8. Included by levels/avx512.cpp inside its namespace, after
// pass.h and amx_product.h.
//
// bf16 adds up 32 products per instruction, so the bits of a sum depend on which tokens come together. Their position and
// the block size alone decide that: pieces lie at multiples of their size and never cross the border of a block. Tokens of
// a piece that nobody reads have weight zero, which adds nothing. int8 gives the same whole numbers as on vectors, hence
// the same bits.

// Tokens of V that one product takes. int4 becomes int8 in memory of its own, where blocks do not matter.
inline int piece_of(const Layer& layer) {
    int piece = tiles::kRowBytes / static_cast<int>(bytes_of(layer.v.stored));
    while (layer.v.stored != Element::int4 && layer.block_size % piece) piece /= 2;
    return piece;
}

// 2^x, within 2^-13: a quarter of half a step of bf16. 1 for 0; a Taylor-like polynomial that meets 2^f at both ends of [0, 1).
INLINE F rough_exp2(F x) {
    const F f = fraction_of(x);
    return times_power(fma(fma(fma(all(0.07826797f), f, all(0.22630768f)), f, all(0.69542435f)), f, all(1.0f)), x);
}

// How many products a vector of K takes: its elements in equal steps that tiles hold.
inline int steps_of(const Side& side) {
    const int row_bytes = side.dim * static_cast<int>(bytes_of(side.stored));
    int steps = 1;
    while (row_bytes / steps > tiles::kRowBytes || row_bytes % (4 * steps)) ++steps;
    return steps;
}

// Whether products of a side take tiles. A single row is no work for them; of int8 and int4, vectors give the same bits.
inline bool on_tiles(const Side& side, const Step& step) {
    if (!side.tiled) return false;
    if (side.stored == Element::bfloat16) return true;
    const bool bytes = side.stored == Element::int8 || (side.stored == Element::int4 && side.has_one_scale());
    return bytes && step.max_rows > 1;
}

// The registers as one stage after the other needs them: most often all alike.
class Configuration {
public:
    Configuration() = default;
    Configuration(const Configuration&) = delete;
    Configuration& operator=(const Configuration&) = delete;
    ~Configuration() { tiles::release(); }

    // Products of so many rows of so many bytes from here on.
    void use(int rows, int row_bytes) {
        if (rows == rows_ && row_bytes == row_bytes_) return;
        tiles::Shapes shapes;
        for (int i = 0; i < kSumTiles; ++i) shapes.set(i, rows);
        for (int i = 0; i < 2; ++i) shapes.set(kLeft + i, rows, row_bytes), shapes.set(kRight + i, row_bytes / 4);
        tiles::configure(shapes);
        rows_ = rows, row_bytes_ = row_bytes;
    }

private:
    int rows_ = 0, row_bytes_ = 0;
};

// The left side of a stage: its rows in `tiles` of `size`. The last ones may be no rows of the pass: what is computed for
// them goes nowhere.
struct RowTiles {
    int tiles, size;

    explicit RowTiles(int rows) : tiles((rows + tiles::kRows - 1) / tiles::kRows), size((rows + tiles - 1) / tiles) {}
    int padded() const { return tiles * size; }

    // Rows of row_bytes, from `row_tile` on.
    LeftSide left(const float* data, int row_tile, std::ptrdiff_t row_bytes, int advance) const {
        const std::ptrdiff_t tile = row_bytes * size;
        return {reinterpret_cast<const std::uint8_t*>(data) + row_tile * tile, row_bytes, tile, advance};
    }
};

// Products of queries with K, as numbers of 32 bits in pass.work.scores: rows of the first plane, then of the second. keys:
// where each of the chunk's slots lies.
template <class Format>
void multiply_keys(const Pass& pass, const std::uint8_t* const* keys, int count, const RowTiles& rows, int row_bytes, int steps, Ahead& ahead) {
    const int step_bytes = row_bytes / steps, tile_bytes = step_bytes / 4 * tiles::kRowBytes;
    cover(rows.tiles, count, [&](auto r, auto n, int row_tile, int slot) {
        constexpr int R = decltype(r)::value, N = decltype(n)::value;
        each<R * N>([](auto sum) { tiles::zero<decltype(sum)::value>(); });
        const std::uint8_t* first[N];
        std::copy(keys + slot, keys + slot + N, first);
        multiply<Format, R, N>(
            rows.left(pass.work.q, row_tile, row_bytes, step_bytes), steps, tiles::kRowBytes, row_tile ? 0 : tile_bytes, ahead,
            [&](int i, int column) { return first[column] + static_cast<std::ptrdiff_t>(i) * tile_bytes; });
        float* to = pass.scores(row_tile * rows.size) + slot * kTile;
        each<R * N>([&](auto sum) {
            constexpr int row = decltype(sum)::value / N, column = decltype(sum)::value % N;
            tiles::store<decltype(sum)::value>(to + row * rows.size * kScoreStride + column * kTile, kScoreStride * 4);
        });
    });
}

// sums [rows][dim] (+)= weights . V. weights: rows of weight_bytes. pieces: V of each, with `piece_bytes` of weights.
template <class Format, bool Fresh>
void multiply_values(const Pass& pass, const RowTiles& rows, float* sums, const float* weights, int weight_bytes,
                     const std::uint8_t* const* pieces, int count, int piece_bytes, Ahead& ahead) {
    const int dim = pass.layer.v.dim;
    cover(rows.tiles, dim / kTile, [&](auto r, auto n, int row_tile, int columns) {
        constexpr int R = decltype(r)::value, N = decltype(n)::value;
        float* to = sums + static_cast<std::ptrdiff_t>(row_tile) * rows.size * dim + columns * kTile;
        const auto place = [&](int sum) { return to + sum / N * rows.size * dim + sum % N * kTile; };
        each<R * N>([&](auto sum) {
            if constexpr (Fresh) tiles::zero<decltype(sum)::value>();
            else tiles::load<decltype(sum)::value>(place(decltype(sum)::value), dim * 4);
        });
        const std::ptrdiff_t offset = columns * tiles::kRowBytes;
        multiply<Format, R, N>(
            rows.left(weights, row_tile, weight_bytes, piece_bytes), count, dim * 4,
            row_tile ? 0 : piece_bytes / 4 * tiles::kRowBytes, ahead,
            [&](int i, int column) { return pieces[i] + (offset + column * tiles::kRowBytes); });
        each<R * N>([&](auto sum) { tiles::store<decltype(sum)::value>(place(decltype(sum)::value), dim * 4); });
    });
}

struct Bfloat16Keys final : Keys {
    Configuration& registers;
    int planes, steps;  // a query in float32 or float16 becomes the sum of two bf16: 16 bits of it count

    Bfloat16Keys(const Step& step, Configuration& registers)
        : registers(registers), planes(step.q.element == Element::bfloat16 ? 1 : 2), steps(steps_of(step.layer.k)) {}

    // The factor of scores comes later, so that a query in bf16 stays what it is.
    void take_queries(Pass& pass) override {
        const int dim = pass.layer.k.dim, rows = planes * pass.rows;
        auto* const halves = reinterpret_cast<std::uint16_t*>(pass.work.q);
        std::fill(halves + rows * dim, halves + RowTiles(rows).padded() * dim, std::uint16_t{0});
        float row[kMaxDim];
        for (int r = 0; r < pass.rows; ++r) {
            if (planes == 1) {
                std::memcpy(halves + r * dim, query(pass, r), 2 * dim);
                continue;
            }
            load_row(pass, r, row);
            for (int d = 0; d < dim; ++d) {
                const std::uint16_t high = bfloat16_of_float(row[d]);
                halves[r * dim + d] = high;
                halves[(pass.rows + r) * dim + d] = bfloat16_of_float(row[d] - float_of_bfloat16(high));
            }
        }
    }

    void prepare(Pass&, const Chunk&, Ahead&) override {}

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const RowTiles rows(planes * pass.rows);
        registers.use(rows.size, pass.layer.k.dim * 2 / steps);
        multiply_keys<Bfloat16Tiles>(pass, chunk.k.data, chunk.count, rows, pass.layer.k.dim * 2, steps, ahead);
    }

    F score(const Pass& pass, const Chunk& chunk, int r) const override {
        float* scores = pass.scores(r);
        const float* low = pass.scores(pass.rows + r);
        const F factor = all(capped(pass) ? score_factor(pass.layer) : 1);
        const int count = chunk.count * kTile;
        if (planes == 2) {
            return score_row(scores, count, [&](int j) __attribute__((always_inline)) {
                return (load(scores + j) + load(low + j)) * factor;
            });
        }
        if (!capped(pass)) return largest_in_row(scores, count);
        return score_row(scores, count, [&](int j) __attribute__((always_inline)) { return load(scores + j) * factor; });
    }

    float factor(const Pass& pass) const override { return capped(pass) ? 1 : score_factor(pass.layer); }

private:
    static bool capped(const Pass& pass) { return pass.layer.softcap > 0; }
};

struct Bfloat16Values final : Values {
    Configuration& registers;

    Bfloat16Values(const Step& step, Configuration& registers) : Values(piece_of(step.layer)), registers(registers) {}

    void prepare(Pass&, const Chunk&, Ahead&) override {}

    // Weights are rounded to bf16, which is less than what V lost, and lie where the scores of their row did.
    F weigh(Pass& pass, const Chunk& chunk, int r, const Below& below, Ahead& ahead) override {
        constexpr int some = 2 * kTile;
        const float* scores = pass.scores(r);
        auto* halves = reinterpret_cast<std::uint16_t*>(pass.scores(r));
        const int count = chunk.count * kTile;
        F total = F{};
        for (int j = 0; j < count; j += some) {
            ahead.ask(some * kScoreBytes);
            const F one = rough_exp2(below(scores + j)), two = j + kTile < count ? rough_exp2(below(scores + j + kTile)) : F{};
            store_bfloat16(halves + j, one, two);
            total += one, total += two;
        }
        return total;
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const std::uint8_t* pieces[kChunk / kTile];
        const int slots = piece / kTile, count = chunk.count / slots;
        for (int i = 0; i < count; ++i) pieces[i] = live_piece(pass, chunk, i * slots, slots);
        const RowTiles rows(pass.rows);
        shrink_values(pass);
        registers.use(rows.size, piece * 2);
        multiply_values<Bfloat16Tiles, false>(pass, rows, pass.work.values, pass.work.scores, kScoreStride * 4, pieces, count,
                                              piece * 2, ahead);
    }

    // V as it lies or copied without the tokens that nobody reads.
    const std::uint8_t* live_piece(const Pass& pass, const Chunk& chunk, int slot, int slots) const {
        const std::uint8_t* from = chunk.v.data[slot];
        bool live = true;
        for (int i = slot; i < slot + slots; ++i) live = live && chunk.slots[i].live == kAllLive;
        if (live) return from;
        const int size = kTile * pass.layer.v.dim;
        auto* to = reinterpret_cast<std::uint16_t*>(pass.work.v_tiles) + slot * size;
        for (int i = 0; i < slots; ++i)
            copy_live<Bfloat16>(reinterpret_cast<const std::uint16_t*>(from) + i * size, chunk.slots[slot + i],
                                     pass.layer.v.dim, to + i * size);
        return reinterpret_cast<const std::uint8_t*>(to);
    }
};

// Codes of four bits as bytes: `rows` of `columns` quads become as many of the lower codes, stride apart, and of the upper
// ones, `upper` behind them.
inline void widen_codes(const std::uint8_t* from, int rows, int columns, std::ptrdiff_t stride, std::ptrdiff_t upper, std::uint8_t* to) {
    for (int row = 0; row < rows; ++row, to += stride)
        for (int c = 0; c < columns; c += W, from += 4 * W) {
            const I both = load(reinterpret_cast<const std::int32_t*>(from));
            store(reinterpret_cast<std::int32_t*>(to + 4 * c), both & 0x0F0F0F0F);
            store(reinterpret_cast<std::int32_t*>(to + 4 * c + upper), both >> 4 & 0x0F0F0F0F);
        }
}

// Keys of int8, or with `Zero` of int4.
template <bool Zero>
struct ByteKeys final : Keys {
    Configuration& registers;
    int steps;
    const std::uint8_t* keys[kChunk / kTile];  // of the chunk, a byte each

    ByteKeys(const Step& step, Configuration& registers) : registers(registers), steps(steps_of(step.layer.k)) {}

    void take_queries(Pass& pass) override {
        const int dim = pass.layer.k.dim, rows = 2 * pass.rows;
        auto* const bytes = reinterpret_cast<std::int8_t*>(pass.work.q);
        std::fill(bytes + rows * dim, bytes + RowTiles(rows).padded() * dim, std::int8_t{0});
        for (int r = 0; r < pass.rows; ++r) whole_planes(pass, r, bytes + r * dim, bytes + (pass.rows + r) * dim);
    }

    void prepare(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const int dim = pass.layer.k.dim;
        auto* to = reinterpret_cast<std::uint8_t*>(pass.work.k_tiles);
        for (int i = 0; i < chunk.count; ++i, to += kTile * dim) {
            if constexpr (Zero) {
                widen_codes(chunk.k.data[i], dim / 8, kTile, 4 * kTile, kTile * dim / 2, to);
                ahead.ask(kTile * dim / 2);
            }
            keys[i] = Zero ? to : chunk.k.data[i];
        }
        load_scales(pass, chunk, pass.layer.k, chunk.k, pass.work.k_scale, pass.work.k_zero);
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const RowTiles rows(2 * pass.rows);
        registers.use(rows.size, pass.layer.k.dim / steps);
        multiply_keys<Int8Tiles>(pass, keys, chunk.count, rows, pass.layer.k.dim, steps, ahead);
    }

    F score(const Pass& pass, const Chunk& chunk, int r) const override {
        const auto* high = reinterpret_cast<const std::int32_t*>(pass.scores(r));
        const auto* low = reinterpret_cast<const std::int32_t*>(pass.scores(pass.rows + r));
        return score_whole<Zero>(pass, chunk, r,
                                 [&](int j) __attribute__((always_inline)) { return join(high + j, low + j); });
    }
};

// Values of int8, or with `Zero` of int4.
template <bool Zero>
struct ByteValues final : Values {
    Configuration& registers;
    const int together;  // tokens of a product
    const std::uint8_t* pieces[kChunk / kTile];

    ByteValues(const Step& step, Configuration& registers)
        : Values(Zero ? kTile : piece_of(step.layer)), registers(registers), together(piece_of(step.layer)) {}

    void prepare(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const int slots = together / kTile, dim = pass.layer.v.dim;
        auto* const to = reinterpret_cast<std::uint8_t*>(pass.work.v_tiles);
        for (int i = 0; Zero && i < chunk.count; ++i) {
            widen_codes(chunk.v.data[i], kTile / 4, dim / 2, 4 * dim, 2 * dim, to + i * kTile * dim);
            ahead.ask(kTile * dim / 2);
        }
        for (int i = 0; i < chunk.count; i += slots) pieces[i / slots] = Zero ? to + i * kTile * dim : chunk.v.data[i];
        load_scales(pass, chunk, pass.layer.v, chunk.v, pass.work.v_scale, pass.work.v_zero);
    }

    F weigh(Pass& pass, const Chunk& chunk, int r, const Below& below, Ahead& ahead) override {
        auto* high = reinterpret_cast<std::int8_t*>(pass.work.weights) + r * kChunk;
        auto* low = high + pass.rows * kChunk;
        const int count = chunk.count * kTile;
        for (int j = count; Zero && j % together; j += kTile) store_bytes(high + j, I{}), store_bytes(low + j, I{});
        return weigh_whole<Zero>(pass.work, r, pass.scores(r), count, below, ahead,
                                 [&](int j, I whole) __attribute__((always_inline)) {
            store_bytes(high + j, whole >> 7), store_bytes(low + j, whole & 127);
        });
    }

    void multiply(Pass& pass, const Chunk& chunk, Ahead& ahead) override {
        const int slots = together / kTile, count = (chunk.count + slots - 1) / slots, dim = pass.layer.v.dim;
        const RowTiles rows(2 * pass.rows);
        registers.use(rows.size, together);
        multiply_values<Int8Tiles, true>(pass, rows, pass.work.exact, pass.work.weights, kChunk, pieces, count, together, ahead);
        const auto* exact = reinterpret_cast<const std::int32_t*>(pass.work.exact);
        for (int r = 0; r < pass.rows; ++r) {
            const std::int32_t *high = exact + r * dim, *low = high + pass.rows * dim;
            add_exact<Zero>(pass, r, [&](int d) __attribute__((always_inline)) { return join(high + d, low + d); });
        }
    }
};
