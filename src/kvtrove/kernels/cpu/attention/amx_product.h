// Products on AMX tiles. Included by amx.cpp inside its namespace.
//
// Registers: sums in 0..3, the left side (queries, weights) in 4 and 5, the right side (K, V as they lie) in 6 and 7.
//
// A product of 16 rows keeps TMUL busy for 16 cycles, its result is there after 52; a load of 16 lines that are cached
// takes 8. So four sums in turn hide the delay, and no product may wait for more than two loads:
//
//   row tiles x columns   4 x 1   3 x 1   2 x 2   1 x 4   int8, two sums each: 2 x 1   1 x 2
//   loads per product      1.25    1.33       1    1.25                         1.25      1
//
// K and V, the larger side, pass once per four row tiles of bf16 and two of int8. Sums stay in their registers for all
// products of a score, or of a chunk's values.

constexpr int kSumTiles = 4, kLeft = 4, kRight = 6;

template <int I>
using Number = std::integral_constant<int, I>;

template <class F, int... I>
INLINE void each_of(F&& f, std::integer_sequence<int, I...>) {
    (f(Number<I>{}), ...);
}

// f(0), ..., f(Count - 1), unrolled: numbers of registers are constants.
template <int Count, class F>
INLINE void each(F&& f) {
    each_of(f, std::make_integer_sequence<int, Count>{});
}

// The left side comes in planes, whose products belong together. bf16: numbers as one or two bf16, into one sum.
struct Bfloat16Tiles {
    static constexpr bool kSumPerPlane = false;
    template <int Plane, int C, int A, int B>
    INLINE static void dot() { tiles::dot_bf16<C, A, B>(); }
};

// 16-bit numbers 256 * high + low, high signed and low not: two exact sums.
struct Int8Tiles {
    static constexpr bool kSumPerPlane = true;
    template <int Plane, int C, int A, int B>
    INLINE static void dot() {
        if constexpr (Plane == 0) tiles::dot_i8<C, A, B>();
        else tiles::dot_u8<C, A, B>();
    }
};

// Register of the sums of (row tile, column, plane).
template <class Format, int N>
constexpr int sum_tile(int row_tile, int column, int plane) {
    return Format::kSumPerPlane ? (row_tile * 2 + plane) * N + column : row_tile * N + column;
}

// Strides in bytes. advance: from product to product.
struct LeftSide {
    const std::uint8_t* data;
    std::ptrdiff_t row, row_tile, plane, advance;
};

// Adds `count` products to the sums of R row tiles and N columns. right(i, column): address of the right side.
template <class Format, int R, int Planes, int N, class Right>
INLINE void multiply(const LeftSide& side, int count, std::ptrdiff_t right_row, const Right& right) {
    const LeftSide left = side;
    const std::uint8_t* from = left.data;
    for (int i = 0; i < count; ++i, from += left.advance) {
        each<N>([&](auto n) __attribute__((always_inline)) {
            constexpr int column = decltype(n)::value, b = kRight + column % 2;
            tiles::load<b>(right(i, column), right_row);
            each<R * Planes>([&](auto m) __attribute__((always_inline)) {
                constexpr int row_tile = decltype(m)::value / Planes, plane = decltype(m)::value % Planes;
                constexpr int a = kLeft + decltype(m)::value % 2;
                constexpr bool held = column > 0 && R * Planes <= 2;
                if constexpr (!held) tiles::load<a>(from + row_tile * left.row_tile + plane * left.plane, left.row);
                Format::template dot<plane, sum_tile<Format, N>(row_tile, column, plane), a, b>();
            });
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
