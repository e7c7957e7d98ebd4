// Products on AMX tiles. Included by levels/avx512.cpp inside its namespace.
//
// Registers: sums in 0..3, the left side (queries, weights) in 4 and 5, the right side (keys, values) in 6 and 7.
//
// A product of 16 rows keeps TMUL busy for 16 cycles (up to 8 rows: 10), its result is there after 52; a load of 16 lines
// that are cached takes 8 to 13. So four sums in turn hide the delay, and no product may wait for more than two loads:
//
//   row tiles x columns   2 x 2   1 x 4   1 x 2
//   loads per product         1    1.25     1.5
//
// K and V, the larger side, stay close while all row tiles use them. Numbers of more than one byte, or one bf16, are two planes: rows
// of their own, as a product of few rows costs less than two products. Sums stay in their registers for all products of a
// score, or of a chunk's values.

constexpr int kSumTiles = 4;

struct Bfloat16Tiles {
    template <int C, int A, int B>
    INLINE static void dot() { tiles::dot_bf16<C, A, B>(); }
};

struct Int8Tiles {
    template <int C, int A, int B>
    INLINE static void dot() { tiles::dot_i8<C, A, B>(); }
};

// Strides in bytes. advance: from product to product.
struct LeftSide {
    const std::uint8_t* data;
    std::ptrdiff_t row, row_tile, advance;
};

constexpr int kLeft = 4, kRight = 6;  // the first registers of a side

// Adds `count` products to the sums of R row tiles and N columns. right(i, column): address of the right side. bytes: of
// the right side that a product brings, as far as work ahead goes by it.
template <class Format, int R, int N, class Right>
INLINE void multiply(const LeftSide& side, int count, std::ptrdiff_t right_row, int bytes, Ahead& ahead, const Right& right) {
    const LeftSide left = side;
    const std::uint8_t* from = left.data;
    for (int i = 0; i < count; ++i, from += left.advance) {
        each<N>([&](auto n) __attribute__((always_inline)) {
            constexpr int column = decltype(n)::value, b = kRight + column % 2;
            tiles::load<b>(right(i, column), right_row);
            each<R>([&](auto m) __attribute__((always_inline)) {
                constexpr int row_tile = decltype(m)::value, a = kLeft + row_tile;
                if constexpr (column == 0) tiles::load<a>(from + row_tile * left.row_tile, left.row);
                Format::template dot<row_tile * N + column, a, b>();
            });
            ahead.ask(bytes);
        });
    }
}

// block(R, N) with constants of those values: 1 or 2 row tiles, 1, 2 or 4 columns.
template <class Block>
INLINE void choose_block(int row_tiles, int columns, const Block& block) {
    if (row_tiles == 2) return columns == 2 ? block(Number<2>{}, Number<2>{}) : block(Number<2>{}, Number<1>{});
    if (columns == 4) return block(Number<1>{}, Number<4>{});
    if (columns == 2) return block(Number<1>{}, Number<2>{});
    block(Number<1>{}, Number<1>{});
}

// block(R, N, row tile, column) for blocks of at most kSumTiles sums each that cover all row tiles and columns. Columns
// outside, so that K and V pass once and stay close while all rows use them.
template <class Block>
void cover(int row_tiles, int columns, const Block& block) {
    int wide = row_tiles == 1 ? kSumTiles : kSumTiles / 2;
    for (int column = 0; column < columns; column += wide) {
        while (wide > columns - column) wide /= 2;
        for (int row_tile = 0; row_tile < row_tiles; row_tile += 2) {
            choose_block(std::min(2, row_tiles - row_tile), wide, [&](auto r, auto n) { block(r, n, row_tile, column); });
        }
    }
}
