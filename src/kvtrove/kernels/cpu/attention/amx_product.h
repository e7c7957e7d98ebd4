// Products on AMX tiles. Included by amx.cpp inside its namespace.
//
// Registers: sums in 0..3; for keys the left side (queries) in 4 and the right side in 6, for values (weights) in 5 and 7. So
// one configuration serves both stages, whatever their shapes.
//
// A product of 16 rows keeps TMUL busy for 16 cycles (up to 8 rows: 10), its result is there after 52; a load of 16 lines
// that are cached takes 8 to 13. So four sums in turn hide the delay, and no product may wait for more than two loads:
//
//   row tiles x columns   4 x 1   3 x 1   2 x 2   1 x 4
//   loads per product      1.25    1.33       1    1.25
//
// K and V, the larger side, pass once per four row tiles. Numbers of more than one byte, or one bf16, are two planes: rows
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

// Registers of a stage's sides.
template <int Left, int Right>
struct Registers {
    static constexpr int left = Left, right = Right;
};
using KeyRegisters = Registers<4, 6>;
using ValueRegisters = Registers<5, 7>;

// Adds `count` products to the sums of R row tiles and N columns. right(i, column): address of the right side. bytes: of
// the right side that a product brings, as far as work ahead goes by it.
template <class Format, class Registers, int R, int N, class Right>
INLINE void multiply(const LeftSide& side, int count, std::ptrdiff_t right_row, int bytes, Ahead& ahead, const Right& right) {
    const LeftSide left = side;
    const std::uint8_t* from = left.data;
    for (int i = 0; i < count; ++i, from += left.advance) {
        each<N>([&](auto n) __attribute__((always_inline)) {
            constexpr int column = decltype(n)::value, a = Registers::left, b = Registers::right;
            tiles::load<b>(right(i, column), right_row);
            each<R>([&](auto m) __attribute__((always_inline)) {
                constexpr int row_tile = decltype(m)::value;
                constexpr bool held = column > 0 && R == 1;
                if constexpr (!held) tiles::load<a>(from + row_tile * left.row_tile, left.row);
                Format::template dot<row_tile * N + column, a, b>();
            });
            ahead.ask(bytes);
        });
    }
}

// block(R, N) with constants of those values.
template <int Most, int R = Most, int N = 1, class Block>
INLINE void choose_block(int row_tiles, int columns, const Block& block) {
    if (row_tiles == R && columns == N) return block(Number<R>{}, Number<N>{});
    if constexpr (R * N * 2 <= Most) return choose_block<Most, R, N * 2>(row_tiles, columns, block);
    else if constexpr (R > 1) return choose_block<Most, R - 1>(row_tiles, columns, block);
}

// block(R, N, row tile, column) for blocks of at most `Most` sums each that cover all row tiles and columns. Columns
// outside, so that K and V pass once and stay close while all rows use them.
template <int Most, class Block>
void cover(int row_tiles, int columns, const Block& block) {
    int wide = row_tiles >= Most ? 1 : Most / row_tiles;
    for (int column = 0; column < columns; column += wide) {
        while (wide > columns - column) wide /= 2;
        for (int row_tile = 0; row_tile < row_tiles; row_tile += Most) {
            const auto here = [&](auto r, auto n) { block(r, n, row_tile, column); };
            choose_block<Most>(std::min(Most, row_tiles - row_tile), wide, here);
        }
    }
}
