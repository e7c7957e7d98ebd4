// The stages of a pass on AMX tiles, for tiled blocks of bf16 and int8. Included by amx.cpp inside its namespace, after
// pass.h and amx_product.h.
//
// bf16 adds up 32 products per instruction, so the bits of a sum depend on which tokens come together. Their position and
// the block size alone decide that: pieces lie at multiples of their size and never cross the border of a block. Tokens of
// a piece that nobody reads have weight zero, which adds nothing.

typedef std::uint8_t Bytes __attribute__((vector_size(W)));
typedef std::uint8_t UnalignedBytes __attribute__((vector_size(W), aligned(1), may_alias));

// How a pass is cut into tiles: its rows into `row_tiles` of `tile_rows` (the last ones may be no rows of the pass: what
// is computed for them goes nowhere), head_dim into `steps` of `step_bytes`, tokens into pieces.
struct Cut {
    int row_tiles, tile_rows, steps = 1, step_bytes, piece;
    int configured = 0;

    Cut(const Pass& pass, int pack) {
        const int row_bytes = pass.layer.head_dim * 4 / pack;
        row_tiles = (pass.rows + tiles::kRows - 1) / tiles::kRows;
        tile_rows = (pass.rows + row_tiles - 1) / row_tiles;
        while (row_bytes / steps > tiles::kRowBytes || row_bytes % (4 * steps)) ++steps;
        step_bytes = row_bytes / steps;
        piece = tiles::kRowBytes * pack / 4;
        while (pass.layer.block_size % piece) piece /= 2;
    }

    ~Cut() { tiles::release(); }

    // Products of `left_bytes` per row of the left side from here on.
    void use(int left_bytes) {
        if (left_bytes == configured) return;
        tiles::Shapes shapes;
        for (int i = 0; i < kLeft; ++i) shapes.set(i, tile_rows);
        for (int i = kLeft; i < kRight; ++i) shapes.set(i, tile_rows, left_bytes);
        for (int i = kRight; i < tiles::kTiles; ++i) shapes.set(i, left_bytes / 4);
        tiles::configure(shapes);
        configured = left_bytes;
    }

    // Rows of `planes` planes of `plane_bytes`, from `row_tile` on.
    LeftSide left(const float* data, int row_tile, int planes, std::ptrdiff_t plane_bytes, int advance) const {
        const std::ptrdiff_t row = planes * plane_bytes, tile = row * tile_rows;
        return {reinterpret_cast<const std::uint8_t*>(data) + row_tile * tile, row, tile, plane_bytes, advance};
    }
};

template <class Read>
const std::uint8_t* bytes_in_block(const Pass& pass, const Plane& plane, const Slot& slot) {
    return reinterpret_cast<const std::uint8_t*>(tile_in_block<Read>(pass.blocks, plane, slot.begin));
}

// 256 * high + low
INLINE I join(const std::int32_t* high, const std::int32_t* low) { return (I)(((U)load(high) << 8) + (U)load(low)); }

// The two sums of one block of int8, on their way from the registers.
struct Halves {
    alignas(64) std::int32_t high[tiles::kRows][kTile], low[tiles::kRows][kTile];
};

struct Bfloat16Stages {
    static constexpr int kPack = 2;
    Cut cut;
    int piece, planes;  // a query in float32 or float16 becomes the sum of two bf16: 16 bits of it count

    explicit Bfloat16Stages(const Pass& pass)
        : cut(pass, kPack), piece(cut.piece), planes(pass.step.q.element == Element::bfloat16 ? 1 : 2) {}

    // The factor of scores comes later, so that a query in bf16 stays what it is.
    void load(Pass& pass) {
        const int dim = pass.layer.head_dim;
        auto* halves = reinterpret_cast<std::uint16_t*>(pass.work.q);
        std::fill(halves, halves + cut.row_tiles * cut.tile_rows * planes * dim, std::uint16_t{0});
        float row[kMaxDim];
        for (int r = 0; r < pass.rows; ++r) {
            load_row(pass, r, row);
            for (int plane = 0; plane < planes; ++plane, halves += dim) {
                for (int d = 0; d < dim; ++d) {
                    halves[d] = bfloat16_of_float(row[d]);
                    row[d] -= float_of_bfloat16(halves[d]);
                }
            }
        }
    }

    void multiply_keys(Pass& pass) {
        const std::uint8_t* keys[kChunk / kTile];
        for (int i = 0; i < pass.count; ++i) keys[i] = bytes_in_block<TiledBfloat16>(pass, pass.layer.k, pass.slots[i]);
        cut.use(cut.step_bytes);
        if (planes == 1) score<1>(pass, keys);
        else score<2>(pass, keys);
    }

    template <int Planes>
    void score(const Pass& pass, const std::uint8_t* const* keys) const {
        cover<kSumTiles>(cut.row_tiles, pass.count, [&](auto r, auto n, int row_tile, int slot) {
            constexpr int R = decltype(r)::value, N = decltype(n)::value;
            each<R * N>([](auto sum) { tiles::zero<decltype(sum)::value>(); });
            const std::uint8_t* first[N];
            std::copy(keys + slot, keys + slot + N, first);
            const std::ptrdiff_t advance = cut.step_bytes / 4 * tiles::kRowBytes;
            multiply<Bfloat16Tiles, R, Planes, N>(
                cut.left(pass.work.q, row_tile, Planes, pass.layer.head_dim * 2, cut.step_bytes), cut.steps,
                tiles::kRowBytes, [&](int i, int column) { return first[column] + i * advance; });
            float* to = pass.work.scores + row_tile * cut.tile_rows * kChunk + slot * kTile;
            each<R * N>([&](auto sum) {
                constexpr int row = decltype(sum)::value / N, column = decltype(sum)::value % N;
                tiles::store<decltype(sum)::value>(to + row * cut.tile_rows * kChunk + column * kTile, kChunk * 4);
            });
        });
    }

    // Weights are rounded to bf16, which is less than what V lost. Their sum is taken after rounding: then what is
    // divided by it is a mean of V with weights that add up to one.
    void make_weights(Pass& pass) {
        const Workspace& work = pass.work;
        const int count = pass.count * kTile;
        const F factor = all(score_factor(pass.layer));
        for (int r = 0; r < pass.rows; ++r) {
            float* scores = work.scores + r * kChunk;
            for (int j = 0; j < count; j += W) amx::store(scores + j, amx::load(scores + j) * factor);
            mask_row(pass, r);
            auto* halves = reinterpret_cast<std::uint16_t*>(work.pairs) + r * kChunk;
            const auto keep = [&](int j, F weights) {
                const U bits = (U)weights, rounded = bits + 0x7FFF + (bits >> 16 & 1);  // to nearest, ties to even
                *reinterpret_cast<UnalignedH*>(halves + j) = __builtin_convertvector(rounded >> 16, H);
                return (F)(rounded & 0xFFFF0000);
            };
            work.shrink[r] = weigh_row(scores, count, work.best[r], work.sum[r], keep);
            shrink_values(pass, r);
        }
    }

    void multiply_values(Pass& pass) {
        const std::uint8_t* values[kChunk / kTile];
        const int slots = piece / kTile, pieces = pass.count / slots;
        for (int i = 0; i < pieces; ++i) values[i] = live_piece(pass, i * slots, slots);
        cut.use(piece * 2);
        const int dim = pass.layer.head_dim;
        cover<kSumTiles>(cut.row_tiles, dim / kTile, [&](auto r, auto n, int row_tile, int columns) {
            constexpr int R = decltype(r)::value, N = decltype(n)::value;
            float* to = pass.work.values + row_tile * cut.tile_rows * dim + columns * kTile;
            const auto place = [&](int sum) { return to + sum / N * cut.tile_rows * dim + sum % N * kTile; };
            each<R * N>([&](auto sum) { tiles::load<decltype(sum)::value>(place(decltype(sum)::value), dim * 4); });
            const std::ptrdiff_t offset = columns * tiles::kRowBytes;
            multiply<Bfloat16Tiles, R, 1, N>(
                cut.left(pass.work.pairs, row_tile, 1, kChunk * 2, piece * 2), pieces, dim * 4,
                [&](int i, int column) { return values[i] + (offset + column * tiles::kRowBytes); });
            each<R * N>([&](auto sum) { tiles::store<decltype(sum)::value>(place(decltype(sum)::value), dim * 4); });
        });
    }

    // V of a piece, where it lies or copied without the tokens that nobody reads.
    const std::uint8_t* live_piece(const Pass& pass, int slot, int slots) const {
        const auto* from = tile_in_block<TiledBfloat16>(pass.blocks, pass.layer.v, pass.slots[slot].begin);
        bool live = true;
        for (int i = slot; i < slot + slots; ++i) live = live && pass.slots[i].live == kAllLive;
        if (live) return reinterpret_cast<const std::uint8_t*>(from);
        const int size = kTile * pass.layer.head_dim;
        auto* to = reinterpret_cast<std::uint16_t*>(pass.work.tiles) + slot * size;
        for (int i = 0; i < slots; ++i)
            copy_live<TiledBfloat16>(from + i * size, pass.slots[slot + i], pass.layer.head_dim, to + i * size);
        return reinterpret_cast<const std::uint8_t*>(to);
    }
};

// The same whole numbers as on vectors, hence the same bits.
struct Int8Stages {
    static constexpr int kPack = 4;
    Cut cut;
    int piece;

    explicit Int8Stages(const Pass& pass) : cut(pass, kPack), piece(cut.piece) {}

    void load(Pass& pass) {
        load_queries<true>(pass);
        const int dim = pass.layer.head_dim;
        auto* row = reinterpret_cast<std::uint8_t*>(pass.work.q);  // [rows][2][dim]: as long as the pairs
        std::fill(row + pass.rows * 2 * dim, row + cut.row_tiles * cut.tile_rows * 2 * dim, std::uint8_t{0});
        std::uint8_t pairs[2 * kMaxDim];
        for (int r = 0; r < pass.rows; ++r, row += 2 * dim) {
            std::copy(row, row + 2 * dim, pairs);
            for (int d = 0; d < dim; ++d) {
                const int at = d / 4 * 8 + d % 2 * 4 + d % 4 / 2 * 2;
                row[d] = pairs[at + 1], row[dim + d] = pairs[at];
            }
        }
    }

    void multiply_keys(Pass& pass) {
        const std::uint8_t* keys[kChunk / kTile];
        for (int i = 0; i < pass.count; ++i) keys[i] = bytes_in_block<TiledInt8>(pass, pass.layer.k, pass.slots[i]);
        load_scales(pass);
        cut.use(cut.step_bytes);
        cover<kSumTiles / 2>(cut.row_tiles, pass.count, [&](auto r, auto n, int row_tile, int slot) {
            constexpr int R = decltype(r)::value, N = decltype(n)::value;
            const std::uint8_t* first[N];
            std::copy(keys + slot, keys + slot + N, first);
            const std::ptrdiff_t advance = cut.step_bytes / 4 * tiles::kRowBytes;
            const LeftSide left = cut.left(pass.work.q, row_tile, 2, pass.layer.head_dim, cut.step_bytes);
            each<R * N * 2>([](auto sum) { tiles::zero<decltype(sum)::value>(); });
            multiply<Int8Tiles, R, 2, N>(left, cut.steps, tiles::kRowBytes,
                                         [&](int i, int column) { return first[column] + i * advance; });
            each_sum<R, N>(pass, row_tile, [&](int row, int column, I sums) {
                amx::store(reinterpret_cast<std::int32_t*>(pass.work.scores) + row * kChunk + (slot + column) * kTile, sums);
            });
        });
    }

    // f(row, column, sums) for all rows of the pass in a block.
    template <int R, int N, class F>
    INLINE void each_sum(const Pass& pass, int row_tile, const F& f) const {
        each<R * N>([&](auto index) {
            constexpr int row = decltype(index)::value / N, column = decltype(index)::value % N;
            Halves halves;
            tiles::store<sum_tile<Int8Tiles, N>(row, column, 0)>(halves.high, tiles::kRowBytes);
            tiles::store<sum_tile<Int8Tiles, N>(row, column, 1)>(halves.low, tiles::kRowBytes);
            const int first = (row_tile + row) * cut.tile_rows, rows = std::min(cut.tile_rows, pass.rows - first);
            for (int m = 0; m < rows; ++m) f(first + m, column, join(halves.high[m], halves.low[m]));
        });
    }

    void make_weights(Pass& pass) {
        const Workspace& work = pass.work;
        const int count = pass.count * kTile;
        for (int r = 0; r < pass.rows; ++r) {
            float* scores = work.scores + r * kChunk;
            rescale_row(scores, count, work.q_scale[r], work.k_scale);
            mask_row(pass, r);
            const auto keep = [&](int j, F weights) { return amx::store(scores + j, weights), weights; };
            work.shrink[r] = weigh_row(scores, count, work.best[r], work.sum[r], keep);
            auto* high = reinterpret_cast<std::uint8_t*>(work.pairs) + r * 2 * kChunk;
            const auto put = [&](int j, I whole) {
                *reinterpret_cast<UnalignedBytes*>(high + j) = __builtin_convertvector(whole >> 8, Bytes);
                *reinterpret_cast<UnalignedBytes*>(high + kChunk + j) = __builtin_convertvector(whole & 0xFF, Bytes);
            };
            work.pair_scale[r] = quantise_row(scores, count, work.v_scale, put);
        }
    }

    void multiply_values(Pass& pass) {
        const Workspace& work = pass.work;
        const std::uint8_t* values[kChunk / kTile];
        const int slots = piece / kTile, pieces = pass.count / slots, dim = pass.layer.head_dim;
        for (int i = 0; i < pieces; ++i) values[i] = bytes_in_block<TiledInt8>(pass, pass.layer.v, pass.slots[i * slots]);
        cut.use(piece);
        cover<kSumTiles / 2>(cut.row_tiles, dim / kTile, [&](auto r, auto n, int row_tile, int columns) {
            constexpr int R = decltype(r)::value, N = decltype(n)::value;
            const std::ptrdiff_t offset = columns * tiles::kRowBytes;
            each<R * N * 2>([](auto sum) { tiles::zero<decltype(sum)::value>(); });
            multiply<Int8Tiles, R, 2, N>(
                cut.left(work.pairs, row_tile, 2, kChunk, piece), pieces, dim * 4,
                [&](int i, int column) { return values[i] + (offset + column * tiles::kRowBytes); });
            each_sum<R, N>(pass, row_tile, [&](int row, int column, I sums) {
                float* to = work.values + row * dim + (columns + column) * kTile;
                const F mixed = __builtin_convertvector(sums, F) * all(work.pair_scale[row]);
                amx::store(to, amx::load(to) * all(work.shrink[row]) + mixed);
            });
        });
    }
};
