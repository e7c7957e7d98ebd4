// The one product of attention: sums[r][c] (+)= x[r][.] . tile[.][c], for scores (a tile of K, columns are tokens) and
// for mixing (a tile of V, columns are elements). Included by each level inside its namespace, after vector.h.
//
// The columns come as pointers to vectors of W columns, which need not lie side by side. Sums stay in registers while
// all rows of the tile pass by; each number of a result is one sum over the tile's rows in their order, however many
// rows of x and columns are computed together.

// Runs of rows follow one another in x; within one, steps lie `advance` apart.
template <class Format>
struct Columns {
    const typename Format::T* const* first;  // [runs][count]: W columns each
    const int* steps;                        // [runs]: rows of the tile / Format::kRows
    int runs, count;
    std::ptrdiff_t advance; // elements from step to step
    std::ptrdiff_t width;   // columns of the tile
    bool fresh;             // sums begin at zero, whatever they hold
};

// rows of x and of sums, from row to row `stride` elements.
template <class Format>
struct Left {
    const typename Format::X* x;
    std::ptrdiff_t x_stride;
    typename Format::X* sums;
    std::ptrdiff_t sums_stride;
};

template <class Format, int R, int N>
void product_block(const Columns<Format>& columns, int column, const Left<Format>& left, int row, Ahead& ahead) {
    using Lanes = typename Format::Lanes;
    constexpr int step_bytes = N * W * Format::kBytes;
    constexpr int some = std::max<int>(1, 2048 / step_bytes);  // steps between what is asked ahead
    const std::ptrdiff_t width = columns.width, advance = columns.advance;
    const std::ptrdiff_t x_stride = left.x_stride, sums_stride = left.sums_stride;
    const auto* x = left.x + row * x_stride;
    auto* out = left.sums + row * sums_stride + column * W;
    Lanes sum[R][N] = {};
    if (!columns.fresh) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) sum[r][n] = load(out + r * sums_stride + n * W);
    }
    for (int run = 0; run < columns.runs; ++run) {
        const typename Format::T* tile[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) tile[n] = columns.first[run * columns.count + column + n];
        std::ptrdiff_t at = 0;
        for (int begin = 0, end = 0; begin < columns.steps[run]; begin = end) {
            end = std::min(begin + some, columns.steps[run]);
            if (row == 0) ahead.ask_in_place((end - begin) * step_bytes);
            for (int step = begin; step < end; ++step, at += advance, x += Format::kParts) {
                each<Format::kParts>([&](auto part) __attribute__((always_inline)) {
                    constexpr int p = decltype(part)::value;
                    Lanes lanes[N];
#pragma GCC unroll 16
                    for (int n = 0; n < N; ++n) lanes[n] = Format::template part<p>(tile[n] + at, width);
#pragma GCC unroll 16
                    for (int r = 0; r < R; ++r) {
                        const Lanes one = all((x + p)[r * x_stride]);
#pragma GCC unroll 16
                        for (int n = 0; n < N; ++n) sum[r][n] = Format::add(sum[r][n], one, lanes[n]);
                    }
                });
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) store(out + r * sums_stride + n * W, sum[r][n]);
}

// R rows and 2^k vectors of columns, as many as registers hold.
template <class Format, int R, int K = 3>
void product_rows(const Columns<Format>& columns, int column, int wide, const Left<Format>& left, int row, Ahead& ahead) {
    if constexpr (R * (1 << K) <= kSums || K == 0) {
        if (wide == 1 << K) return product_block<Format, R, 1 << K>(columns, column, left, row, ahead);
    }
    if constexpr (K > 0) product_rows<Format, R, K - 1>(columns, column, wide, left, row, ahead);
}

// R: the most rows that may come, always whole planes.
template <class Format, int R = kMaxRows>
void product_dispatch(const Columns<Format>& columns, int column, int wide, const Left<Format>& left, int row, int rows,
                      Ahead& ahead) {
    if (rows == R) return product_rows<Format, R>(columns, column, wide, left, row, ahead);
    if constexpr (R > Format::kPlanes) {
        product_dispatch<Format, R - Format::kPlanes>(columns, column, wide, left, row, rows, ahead);
    }
}

// The product of so many rows is cut into blocks of nearly as many each.
template <class Format>
struct RowBlocks {
    static_assert(kMaxRows % Format::kPlanes == 0);
    int rows, count;

    explicit RowBlocks(int rows) : rows(rows), count((rows + kMaxRows - 1) / kMaxRows) {}
    int begin(int block) const { return rows / Format::kPlanes * block / count * Format::kPlanes; }

    // Columns that are computed together, where that many are left.
    int columns_at_once() const {
        const int most = rows - begin(count - 1);
        int wide = 8;
        while (wide > 1 && wide * most > kSums) wide /= 2;
        return wide;
    }
};

// Columns outside, rows inside: what is read from memory passes once and stays close while all rows use it.
template <class Format>
void product(const Columns<Format>& columns, const Left<Format>& left, int rows, Ahead& ahead) {
    const RowBlocks<Format> blocks(rows);
    int wide = blocks.columns_at_once();
    for (int column = 0; column < columns.count; column += wide) {
        while (wide > columns.count - column) wide /= 2;
        for (int block = 0; block < blocks.count; ++block) {
            const int begin = blocks.begin(block), end = blocks.begin(block + 1);
            product_dispatch<Format>(columns, column, wide, left, begin, end - begin, ahead);
        }
    }
}
