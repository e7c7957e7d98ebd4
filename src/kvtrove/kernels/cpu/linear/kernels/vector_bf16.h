// The tasks of linear.cpp for one instruction set: included there once per level, inside a namespace of its own, with
//   KVTROVE_TARGET  attribute that allows the instructions        KVTROVE_LANES  float32 lanes of a vector
//   KVTROVE_SUMS    vectors of sums that fit into the registers beside weights and x
//   KVTROVE_GROUPS    the product of weights in groups
//   KVTROVE_ADD_PAIRS(sum, a, b)  sum += the products of the 16-bit numbers in a and b, neighbours added

constexpr std::size_t kLanes = KVTROVE_LANES;
using Places = VectorPlaces<kLanes>;
constexpr std::size_t kWidth = Places::kWidth;      // outputs in a panel: a low and a high vector
constexpr std::size_t kFew = KVTROVE_SUMS / 2;      // rows that are summed at once
constexpr std::size_t kMostGroups = 8;              // of so many rows, in a part
constexpr std::size_t kMostPanels = 512 / kWidth;   // in a part
constexpr std::size_t kMostRows = 6 * kMostGroups * kFew;  // of x that are packed at a time
constexpr std::size_t kRowsAtOnce = 288;            // that pass through a layer's matrices
constexpr std::size_t kBlock = 256 * kMostGroups * kFew;   // numbers of x in a block of inputs: they fit L2
constexpr std::size_t kAhead = 2048;                // bytes of a panel that one group alone asks for before their turn

// Inputs of a block of so many rows: fewer blocks for fewer rows, while a panel of the block fits a quarter of L1.
constexpr std::size_t depth_of(std::size_t rows, std::size_t input_bytes, std::size_t multiple) {
    return std::min(kBlock / rows, 8192 / input_bytes) / multiple * multiple;
}

// A loop whose registers are given out by themselves: as a part of what calls it, its sums are spilled.
#define KVTROVE_ALONE __attribute__((noinline)) KVTROVE_TARGET

typedef float Floats __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * KVTROVE_LANES)));

constexpr std::size_t kBytes = 2 * kWidth;  // of an input in a panel

// One input: | n0 n_L | n1 n_L+1 | ...: 32-bit words with output n in the low and output n + lanes in the high half, so
// that a shift and a mask make float32 of them.
KVTROVE_TARGET inline void load(const std::uint8_t* from, Floats& low, Floats& high) {
    Words words;
    std::memcpy(&words, from, sizeof words);
    low = reinterpret_cast<Floats>(words << 16);
    high = reinterpret_cast<Floats>(words & 0xffff0000u);
}

// One input, whose weights are at `weights`. x: [Rows].
template <std::size_t Rows, std::size_t Panels>
KVTROVE_TARGET inline __attribute__((always_inline)) void step(const std::uint8_t* weights, std::size_t panel_bytes,
                                                               const float* x, Floats (&sum)[Rows][Panels][2]) {
#pragma GCC unroll 4
    for (std::size_t p = 0; p < Panels; ++p) {
        Floats low, high;
        load(weights + p * panel_bytes, low, high);
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r) {
            const float value = x[r];
            sum[r][p][0] += low * value;
            sum[r][p][1] += high * value;
        }
    }
}

// Panels that are summed together, at most so many: with few rows several, because a sum waits for the one before it.
constexpr std::size_t panels_at_once(std::size_t rows, std::size_t most) {
    return most > 1 && 2 * most * rows > KVTROVE_SUMS ? panels_at_once(rows, most / 2) : most;
}

// Groups of up to kFew rows, as equal as can be: those that are summed together.
struct Groups {
    std::size_t rows, count;

    explicit Groups(std::size_t rows) : rows(rows), count(ceil_div(rows, kFew)) {}
    std::size_t begin(std::size_t group) const { return rows * group / count; }
    std::size_t size(std::size_t group) const { return begin(group + 1) - begin(group); }
};

// Do::run<Rows>(arguments) for a number of rows that is known only now: 1 .. kFew.
template <class Do, std::size_t Rows = kFew, class... Arguments>
KVTROVE_TARGET inline void with_rows(std::size_t rows, const Arguments&... arguments) {
    if (rows == Rows) {
        Do::template run<Rows>(arguments...);
    } else if constexpr (Rows > 1) {
        with_rows<Do, Rows - 1>(rows, arguments...);
    }
}

// Some panels' weights of a block of inputs, and where the sums of the first of the rows and panels are.
struct Tiles {
    const std::uint8_t* weights;
    std::size_t panel_bytes, panels, depth;
    const std::uint8_t* ask;  // what comes into the caches meanwhile: `ask_step` bytes of a panel with every input
    std::size_t ask_step;
    float* sums;
    std::size_t stride;
};

// x in float32 as bf16 weights meet it: group after group, [inputs][rows of the group].
struct Wide {
    static constexpr std::size_t kInputBytes = kBytes, kMultiple = 1;  // of a panel; inputs of a block

    const Product& job;
    float* numbers;

    Wide(const Product& job, std::size_t rows)
        : job(job), numbers(reinterpret_cast<float*>(scratch(rows * job.inputs * sizeof(float)))) {}

    struct Pack {
        template <std::size_t Rows, class T>
        KVTROVE_TARGET static void run(const T* x, std::size_t inputs, float* to) {
            for (std::size_t k = 0; k < inputs; ++k) {
#pragma GCC unroll 16
                for (std::size_t r = 0; r < Rows; ++r) to[k * Rows + r] = widened(x[r * inputs + k]);
            }
        }
    };
    KVTROVE_TARGET void pack(std::size_t row, std::size_t rows) const {
        const std::size_t at = row * job.inputs;
        if (job.type == Float::f32) {
            with_rows<Pack>(rows, static_cast<const float*>(job.x) + at, job.inputs, numbers + at);
        } else {
            with_rows<Pack>(rows, static_cast<const std::uint16_t*>(job.x) + at, job.inputs, numbers + at);
        }
    }

    // sums += x * panels, for rows from `row` on and inputs from `k` on.
    KVTROVE_TARGET void add(std::size_t row, std::size_t rows, std::size_t k, const Tiles& tiles) const {
        with_rows<Add>(rows, numbers + row * job.inputs + k * rows, tiles);
    }

    template <std::size_t Rows, std::size_t Panels>
    KVTROVE_ALONE static void tile(const float* x, const Tiles& of, std::size_t panel) {
        const std::uint8_t *weights = of.weights + panel * of.panel_bytes, *ask = of.ask + panel * of.panel_bytes;
        float* sums = of.sums + panel * kWidth;
        Floats sum[Rows][Panels][2];
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r) std::memcpy(sum[r], sums + r * of.stride, sizeof sum[r]);
        for (std::size_t k = 0; k < of.depth; ++k, weights += kBytes, x += Rows, ask += of.ask_step) {
            if (Rows > 1) {  // one row leaves the processor's own prefetching time enough
#pragma GCC unroll 4
                for (std::size_t p = 0; p < Panels; ++p) __builtin_prefetch(ask + p * of.panel_bytes);
            }
            step<Rows, Panels>(weights, of.panel_bytes, x, sum);
        }
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r) std::memcpy(sums + r * of.stride, sum[r], sizeof sum[r]);
    }

    struct Add {
        template <std::size_t Rows>
        KVTROVE_TARGET static void run(const float* x, const Tiles& of) {
            constexpr std::size_t kAtOnce = panels_at_once(Rows, 4);
            std::size_t p = 0;
            for (; p + kAtOnce <= of.panels; p += kAtOnce) tile<Rows, kAtOnce>(x, of, p);
            for (; p < of.panels; ++p) tile<Rows, 1>(x, of, p);
        }
    };
};

// Rows of y from their sums: scale, bias, rounding; outputs that only fill up the last panel are left out.
KVTROVE_TARGET inline void finish(const Product& job, std::size_t row, std::size_t row_end, const Part& part,
                                  const float* sums) {
    const std::size_t first = part.panel * kWidth, last = std::min(job.outputs, part.panel_end * kWidth);
    float line[kMostPanels * kWidth];
    for (; row < row_end; ++row, sums += (part.panel_end - part.panel) * kWidth) {
        for (std::size_t n = 0; n < last - first; ++n) line[n] = sums[n];
        if (job.scales) {
            for (std::size_t n = 0; n < last - first; ++n) line[n] *= job.scales[first + n];
        }
        if (job.bias) {
            for (std::size_t n = 0; n < last - first; ++n) line[n] += job.bias[first + n];
        }
        if (job.type == Float::f32) {
            std::memcpy(static_cast<float*>(job.y) + row * job.outputs + first, line, (last - first) * sizeof(float));
        } else {
            auto* y = static_cast<std::uint16_t*>(job.y) + row * job.outputs + first;
            for (std::size_t n = 0; n < last - first; ++n) y[n] = bfloat16_of_float(line[n]);
        }
    }
}

// Groups part.row .. part.row_end. Block after block of inputs:    x of the block stays in L2  .  a panel of it in L1
// for all groups of rows, whose sums wait for the next block. Blocks do not follow each other in memory, and no prefetcher
// of the hardware guesses where the next one begins, so each group asks for its share of it. One group alone passes by all
// weights once.
template <class X>
KVTROVE_TARGET void run(const Product& job, const X& x, const Groups& groups, const Part& part) {
    alignas(64) float sums[kMostGroups * kFew * kMostPanels * kWidth];
    const std::size_t count = part.row_end - part.row, all = part.panel_end - part.panel, stride = all * kWidth;
    const std::size_t row = groups.begin(part.row), rows = groups.begin(part.row_end) - row;
    std::fill_n(sums, rows * stride, 0.0f);
    const auto* weights = job.weights + part.panel * job.panel_bytes;
    if (count == 1) {
        x.add(row, rows, 0, {weights, job.panel_bytes, all, job.inputs, weights + kAhead, X::kInputBytes, sums, stride});
        return finish(job, row, row + rows, part, sums);
    }
    const std::size_t most = depth_of(rows, X::kInputBytes, X::kMultiple);
    for (std::size_t k = 0; k < job.inputs; k += most) {
        const std::size_t depth = std::min(most, job.inputs - k);
        for (std::size_t p = 0; p < all; ++p) {
            const auto* block = weights + p * job.panel_bytes + k * X::kInputBytes;
            const auto* next = p + 1 < all ? block + job.panel_bytes : weights + (k + most) * X::kInputBytes;
            for (std::size_t g = part.row; g < part.row_end; ++g) {
                const auto* ask = next + depth * X::kInputBytes * (g - part.row) / count;
                float* to = sums + (groups.begin(g) - row) * stride + p * kWidth;
                x.add(groups.begin(g), groups.size(g), k,
                      {block, job.panel_bytes, 1, depth, ask, X::kInputBytes / count, to, stride});
            }
        }
    }
    finish(job, row, row + rows, part, sums);
}

// x is packed once, for all threads.
template <class X>
void multiply_rows(const Product& job, std::size_t rows) {
    const Groups groups(rows);
    const X x(job, rows);
    constexpr std::size_t kCost = 8;  // multiply-adds that take as long as packing a number
    const std::size_t threads = threads_for(rows * job.inputs * kCost);
    parallel(groups.count, threads, [&](std::size_t g, std::size_t) { x.pack(groups.begin(g), groups.size(g)); });
    const std::size_t panels = ceil_div(job.outputs, kWidth), together = panels_at_once(rows, 4);
    const std::size_t work = rows * job.inputs * job.outputs;
    if (groups.count == 1) {
        return in_runs(panels, together, threads_for(work), [&](std::size_t begin, std::size_t end) {
            for (std::size_t panel = begin; panel < end; panel += kMostPanels) {
                run(job, x, groups, {0, 1, panel, std::min(end, panel + kMostPanels)});
            }
        });
    }
    const Cut cut{groups.count, panels, work, kMostGroups, kMostPanels, together};
    in_parts(cut, [&](const Part& part, std::size_t) { run(job, x, groups, part); });
}

#include "linear/kernels/vector_int8.h"

inline void multiply(const Product& job, std::size_t rows) {
    in_pieces(rows, kMostRows, [&](std::size_t row, std::size_t count) {
        job.scales ? multiply_rows<Whole>(job.from(row), count) : multiply_rows<Wide>(job.from(row), count);
    });
}

constexpr LinearLevel kLevel = {layout_of<Places>(), kRowsAtOnce, false, multiply, KVTROVE_GROUPS};
#undef KVTROVE_ALONE
