// Products with int8 weights for one instruction set, in whole numbers: included after vector_bf16.h, in its namespace.
//
// Of every row of x, each stretch of inputs becomes 16-bit integers and one float32 scale, off by 2^-16 of the stretch's
// largest number at most (bf16 rounds a number by up to 2^-9 of itself). Products are added up exactly in 32 bits over the
// stretch; the stretches' sums are added in float32, in their order. Twice as many multiply-adds fit into an instruction
// as float32 has.

constexpr std::size_t kStretch = 128;      // 128 * 127 * 32767 < 2^31
constexpr float kMostInt16 = 32767.0f;

typedef std::int16_t Shorts __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::int16_t Halves __attribute__((vector_size(2 * KVTROVE_LANES)));

// One stretch. A NaN or an infinity makes its scale NaN, and so every sum of the row.
template <class T>
KVTROVE_TARGET inline float whole_stretch(const T* x, std::size_t count, std::int16_t* numbers) {
    alignas(64) float values[kStretch] = {};
    for (std::size_t i = 0; i < count; ++i) values[i] = widened(x[i]);
    Floats line, most = {}, poison = {};
    for (std::size_t i = 0; i < kStretch; i += kLanes) {
        std::memcpy(&line, values + i, sizeof line);
        const Floats size = line < 0 ? -line : line;
        most = size > most ? size : most;
        poison += line * 0.0f;
    }
    float largest = 1e-30f, bad = 0;
    for (std::size_t i = 0; i < kLanes; ++i) largest = std::max(largest, most[i]), bad += poison[i];
    const float factor = kMostInt16 / largest;
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    alignas(64) std::int16_t whole[kStretch];
    for (std::size_t i = 0; i < kStretch; i += kLanes) {
        std::memcpy(&line, values + i, sizeof line);
        const Ints shifted = reinterpret_cast<Ints>(line * factor + magic) - 0x4B400000;
        const Halves narrow = __builtin_convertvector(shifted, Halves);
        std::memcpy(whole + i, &narrow, sizeof narrow);
    }
    std::memcpy(numbers, whole, ceil_div(count, Places::kByteGroup) * Places::kByteGroup * sizeof *whole);
    return largest / kMostInt16 + bad;
}

// x as int8 weights meet it: 16-bit integers [rows][whole stretches], scales [rows][stretches].
struct Whole {
    static constexpr std::size_t kInputBytes = kWidth, kMultiple = kStretch;

    const Product& job;
    std::size_t stretches;
    std::int16_t* numbers;
    float* scales;

    Whole(const Product& job, std::size_t rows) : job(job), stretches(ceil_div(job.inputs, kStretch)) {
        const std::size_t bytes = rows * stretches * kStretch * sizeof(std::int16_t);
        numbers = reinterpret_cast<std::int16_t*>(scratch(bytes + rows * stretches * sizeof(float)));
        scales = reinterpret_cast<float*>(reinterpret_cast<std::uint8_t*>(numbers) + bytes);
    }

    template <class T>
    KVTROVE_TARGET void pack_row(const T* x, std::size_t row) const {
        for (std::size_t i = 0; i < stretches; ++i) {
            const std::size_t at = row * stretches + i, count = std::min(kStretch, job.inputs - i * kStretch);
            scales[at] = whole_stretch(x + row * job.inputs + i * kStretch, count, numbers + at * kStretch);
        }
    }
    KVTROVE_TARGET void pack(std::size_t row, std::size_t rows) const {
        for (const std::size_t end = row + rows; row < end; ++row) {
            if (job.type == Float::f32) pack_row(static_cast<const float*>(job.x), row);
            else pack_row(static_cast<const std::uint16_t*>(job.x), row);
        }
    }

    // sums += x * panels, for rows from `row` on and inputs from `k` on, the begin of a stretch.
    KVTROVE_TARGET void add(std::size_t row, std::size_t rows, std::size_t k, const Tiles& tiles) const {
        with_rows<Add>(rows, *this, row * stretches + k / kStretch, tiles);
    }

    struct Add {
        template <std::size_t Rows>
        KVTROVE_TARGET static void run(const Whole& x, std::size_t stretch, const Tiles& of) {
            constexpr std::size_t kAtOnce = panels_at_once(Rows, 2);
            for (std::size_t p = 0; p < of.panels; p += kAtOnce) {
                for (std::size_t k = 0; k < of.depth; k += kStretch) {
                    const Stretch one{x.numbers + stretch * kStretch + k, x.scales + stretch + k / kStretch, x.stretches,
                                      std::min(kStretch, of.depth - k)};
                    if (p + kAtOnce <= of.panels) tile<Rows, kAtOnce>(one, of, p, k);
                    else tile<Rows, 1>(one, of, p, k);
                }
            }
        }
    };

    // The same stretch of several rows; those lie `stride` stretches apart.
    struct Stretch {
        const std::int16_t* numbers;
        const float* scales;
        std::size_t stride, depth;

        KVTROVE_TARGET std::int32_t pair(std::size_t row, std::size_t input) const {
            std::int32_t two;
            std::memcpy(&two, numbers + row * stride * kStretch + input, sizeof two);
            return two;
        }
    };

    // A 32-bit word of weights holds the bytes of inputs 0, 2, 1, 3: its even bytes are one pair of inputs, its odd bytes
    // the next.
    template <std::size_t Rows, std::size_t Panels>
    KVTROVE_ALONE static void tile(const Stretch& x, const Tiles& of, std::size_t panel, std::size_t input) {
        const std::uint8_t* weights = of.weights + panel * of.panel_bytes + input * kInputBytes;
        const std::uint8_t* ask = of.ask + panel * of.panel_bytes + input * of.ask_step;
        float* sums = of.sums + panel * kWidth;
        Ints sum[Rows][Panels][2] = {};
        for (std::size_t k = 0; k < x.depth; k += Places::kByteGroup) {
#pragma GCC unroll 2
            for (std::size_t odd = 0; odd < 2; ++odd) {
                Shorts pairs[Panels][2];
#pragma GCC unroll 8
                for (std::size_t p = 0; p < Panels; ++p) {
                    // every line of four inputs: one where vectors have 8 lanes, two where they have 16
                    if (odd || Places::kByteGroup * kWidth > kCacheLine) {
                        __builtin_prefetch(ask + p * of.panel_bytes + (1 - odd) * kCacheLine);
                    }
                    for (std::size_t half = 0; half < 2; ++half) {
                        std::memcpy(&pairs[p][half], weights + p * of.panel_bytes + half * sizeof(Shorts), sizeof(Shorts));
                        pairs[p][half] = (odd ? pairs[p][half] : pairs[p][half] << 8) >> 8;
                    }
                }
#pragma GCC unroll 16
                for (std::size_t r = 0; r < Rows; ++r) {
                    const Ints two = Ints{} + x.pair(r, k + 2 * odd);
#pragma GCC unroll 8
                    for (std::size_t p = 0; p < Panels; ++p) {
                        KVTROVE_ADD_PAIRS(sum[r][p][0], two, reinterpret_cast<Ints>(pairs[p][0]));
                        KVTROVE_ADD_PAIRS(sum[r][p][1], two, reinterpret_cast<Ints>(pairs[p][1]));
                    }
                }
            }
            weights += Places::kByteGroup * kInputBytes, ask += Places::kByteGroup * of.ask_step;
        }
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r) {
            const float scale = x.scales[r * x.stride];
#pragma GCC unroll 16
            for (std::size_t i = 0; i < 2 * Panels; ++i) {
                float* at = sums + r * of.stride + i * kLanes;
                Floats total;
                std::memcpy(&total, at, sizeof total);
                total += __builtin_convertvector(sum[r][i / 2][i % 2], Floats) * scale;
                std::memcpy(at, &total, sizeof total);
            }
        }
    }
};
