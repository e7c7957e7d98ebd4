// Runs linear layers at the AMX level beside the portable one, over memory that is exactly as large as it must be. Built
// with emulated tiles and sanitizers by test_linear_emulated.py; on a machine with AMX it runs with real ones as well.
// Prints what is wrong, or "all equal".

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "allocations.h"
#include "common/threads.h"
#include "layers/norms.h"
#include "linear/level.h"
#include "linear/linear.h"

using namespace kvtrove;

namespace {

using Kind = PackedWeights::Kind;
using Numbers = std::vector<float>;

int failures = 0;

void expect(bool holds, const char* what, std::size_t a = 0, std::size_t b = 0, std::size_t c = 0) {
    if (holds) return;
    ++failures;
    std::printf("%s: %zu %zu %zu\n", what, a, b, c);
}

Numbers random(std::size_t count, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    Numbers values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

std::vector<std::uint16_t> narrow(const Numbers& values) {
    std::vector<std::uint16_t> bits(values.size());
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = bfloat16_of_float(values[i]);
    return bits;
}

Numbers widen(const std::vector<std::uint16_t>& bits) {
    Numbers values(bits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) values[i] = float_of_bfloat16(bits[i]);
    return values;
}

bool same(const Numbers& a, const float* b) { return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0; }

PackedWeights pack(const Numbers& values, std::size_t inputs, Kind kind, Isa isa) {
    PackedWeights weights(values.size() / inputs, inputs, kind, isa);
    weights.fill(0, {values.data(), Float::f32, values.size() / inputs, inputs});
    return weights;
}

Numbers stored(const PackedWeights& weights) {
    std::vector<std::int64_t> ids(weights.outputs());
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i);
    Numbers values(weights.outputs() * weights.inputs());
    weights.gather(ids.data(), ids.size(), values.data(), Float::f32);
    return values;
}

// x with at most the rows that it has; NaN stays where nothing is written.
Numbers multiply(const PackedWeights& weights, const Numbers& x, std::size_t rows, const Numbers& bias) {
    const Numbers exact(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(rows * weights.inputs()));
    Numbers y(rows * weights.outputs(), std::numeric_limits<float>::quiet_NaN());
    weights.multiply(exact.data(), y.data(), Float::f32, rows, bias.empty() ? nullptr : bias.data());
    return y;
}

std::vector<std::uint16_t> multiply_bf16(const PackedWeights& weights, const std::vector<std::uint16_t>& x,
                                         const Numbers& bias) {
    const std::size_t rows = x.size() / weights.inputs();
    std::vector<std::uint16_t> y(rows * weights.outputs(), 0x7fc0);
    weights.multiply(x.data(), y.data(), Float::bf16, rows, bias.empty() ? nullptr : bias.data());
    return y;
}

struct Error {
    double amx = 0, portable = 0;  // sums of squares
};

struct Case {
    std::size_t outputs, inputs, rows;
    Kind kind;
    bool with_bias;
};

// By how much x may be rounded where int8 weights meet it: half a step of 127 * 128 in the largest of 256 inputs.
Numbers half_steps_of(const Numbers& x, std::size_t inputs) {
    constexpr std::size_t kStretch = 256;
    Numbers steps(x.size());
    for (std::size_t row = 0; row < x.size(); row += inputs) {
        for (std::size_t k = 0; k < inputs; k += kStretch) {
            const std::size_t end = std::min(inputs, k + kStretch);
            float largest = 0;
            for (std::size_t i = k; i < end; ++i) largest = std::max(largest, std::fabs(x[row + i]));
            for (std::size_t i = k; i < end; ++i) steps[row + i] = largest / (2 * 127 * 128);
        }
    }
    return steps;
}

// Against float64, beside what a chain of float32 multiply-adds may be off.
void check_against_float64(const Case& c, Error& error) {
    const Numbers values = random(c.outputs * c.inputs, 1), x = random(c.rows * c.inputs, 2);
    const Numbers bias = c.with_bias ? random(c.outputs, 3) : Numbers();
    const PackedWeights tiles = pack(values, c.inputs, c.kind, Isa::amx);
    const PackedWeights plain = pack(values, c.inputs, c.kind, Isa::portable);
    const Numbers weights = stored(tiles);
    expect(same(weights, stored(plain).data()), "levels store other weights", c.outputs, c.inputs);
    const Numbers half_steps = c.kind == Kind::int8 ? half_steps_of(x, c.inputs) : Numbers(x.size());
    const Numbers one = multiply(tiles, x, c.rows, bias), other = multiply(plain, x, c.rows, bias);
    for (std::size_t r = 0; r < c.rows; ++r) {
        for (std::size_t n = 0; n < c.outputs; ++n) {
            double sum = c.with_bias ? bias[n] : 0, size = std::fabs(sum), rounding = 0;
            for (std::size_t k = 0; k < c.inputs; ++k) {
                const double weight = weights[n * c.inputs + k], product = x[r * c.inputs + k] * weight;
                sum += product, size += std::fabs(product);
                rounding += std::fabs(weight) * half_steps[r * c.inputs + k];
            }
            const double off = one[r * c.outputs + n] - sum, off_plain = other[r * c.outputs + n] - sum;
            const double bound = static_cast<double>(c.inputs + 2) * std::ldexp(size, -24) + 1.001 * rounding + 1e-30;
            if (!(std::fabs(off) <= bound)) return expect(false, "not float64", c.outputs, c.inputs, c.rows);
            error.amx += off * off / (size * size), error.portable += off_plain * off_plain / (size * size);
        }
    }
    const auto bits = narrow(x);
    const auto rounded = narrow(multiply(tiles, widen(bits), c.rows, bias));
    expect(multiply_bf16(tiles, bits, bias) == rounded, "bf16 x is another product", c.outputs, c.inputs, c.rows);
}

// Products like the one before take no memory.
void check_memory(const PackedWeights& weights, const Numbers& x, const Numbers& bias) {
    for (const std::size_t rows : {1, 100}) {
        Numbers y(rows * weights.outputs());
        long taken = 0;
        for (int round = 0; round < 2; ++round) {
            taken = allocations;
            weights.multiply(x.data(), y.data(), Float::f32, rows, bias.data());
        }
        expect(allocations == taken, "a product takes memory", weights.outputs(), weights.inputs(), rows);
    }
}

void check_batches(std::size_t outputs, std::size_t inputs, Kind kind, const std::vector<std::size_t>& batches) {
    const std::size_t most = 200;
    const Numbers x = random(most * inputs, 2), bias = random(outputs, 3);
    const PackedWeights weights = pack(random(outputs * inputs, 1), inputs, kind, Isa::amx);
    const Numbers whole = multiply(weights, x, most, bias);
    check_memory(weights, x, bias);
    check_memory(pack(random(outputs * inputs, 1), inputs, kind, Isa::portable), x, bias);
    for (const int threads : {1, 3}) {
        set_max_threads(threads);
        for (const std::size_t rows : batches) {
            expect(same(multiply(weights, x, rows, bias), whole.data()), "other bits in a batch", outputs, inputs, rows);
            if (threads == 1) continue;
            const Numbers last(x.end() - static_cast<std::ptrdiff_t>(rows * inputs), x.end());
            const Numbers y = multiply(weights, last, rows, bias);
            expect(same(y, whole.data() + (most - rows) * outputs), "other bits at the end", outputs, inputs, rows);
        }
    }
    set_max_threads(2);
}

// 4-bit weights give the same bits at all levels.
void check_levels(std::size_t inputs, Kind kind) {
    const std::size_t outputs = 45, rows = 40;
    const Numbers values = random(outputs * inputs, 1), x = random(rows * inputs, 2), bias = random(outputs, 3);
    const PackedWeights tiles = pack(values, inputs, kind, Isa::amx), plain = pack(values, inputs, kind, Isa::portable);
    expect(same(stored(tiles), stored(plain).data()), "levels store other weights", outputs, inputs);
    const Numbers y = multiply(plain, x, rows, bias);
    for (const std::size_t some : {std::size_t{3}, std::size_t{9}, rows}) {
        expect(same(multiply(tiles, x, some, bias), y.data()), "levels give other bits", outputs, inputs, some);
    }
}

// Every integer of int8 at every kind of place: a product with the unit vectors gives the weights.
void check_integers() {
    const std::size_t outputs = 300, inputs = 70;
    Numbers values(outputs * inputs), unit(inputs * inputs);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 255) - 127;
    for (std::size_t n = 0; n < outputs; ++n) values[n * inputs + n % inputs] = n % 2 ? 127 : -127;  // a step is 1
    for (std::size_t k = 0; k < inputs; ++k) unit[k * inputs + k] = 1;
    for (const Kind kind : {Kind::int8, Kind::bf16}) {
        const PackedWeights weights = pack(values, inputs, kind, Isa::amx);
        expect(same(stored(weights), values.data()), "integers are stored as others");
        const Numbers y = multiply(weights, unit, inputs, {});
        for (std::size_t k = 0; k < inputs; ++k) {
            for (std::size_t n = 0; n < outputs; ++n) {
                const float value = values[n * inputs + k], off = std::fabs(y[k * outputs + n] - value);
                const bool scaled = kind == Kind::int8;  // there and back: two roundings
                expect(off <= (scaled ? std::ldexp(std::fabs(value), -22) : 0), "not the integer", k, n);
            }
        }
    }
}

// One call gives the bits of a product and of what follows it.
void check_gates(std::size_t outputs, std::size_t inputs, Kind kind, Float type) {
    const std::size_t inner = outputs / 2;
    const PackedWeights weights = pack(random(outputs * inputs, 1), inputs, kind, Isa::amx);
    const Numbers bias = random(outputs, 3);
    expect(weights.gates(), "no gated products", outputs);
    expect(!pack(random(96 * 3, 1), 3, kind, Isa::amx).gates(), "gated products of half panels");
    for (const std::size_t rows : {1, 4, 5, 16, 17, 33, 70}) {
        const Numbers x = random(rows * inputs, 2);
        const auto bits = narrow(x);
        const void* from = type == Float::f32 ? static_cast<const void*>(x.data()) : bits.data();
        const std::size_t bytes = bytes_of(type);
        std::vector<std::uint8_t> both(rows * outputs * bytes), apart(rows * inner * bytes), once(apart.size());
        weights.multiply(from, both.data(), type, rows, bias.data());
        silu_and_mul(type, rows, inner, static_cast<std::ptrdiff_t>(outputs), both.data(), both.data() + inner * bytes,
                     apart.data());
        weights.multiply_gated(from, once.data(), type, rows, bias.data());
        expect(once == apart, "a gated product is another one", outputs, inputs, rows);
    }
}

// The three parts of a float32 number are all of it.
void check_split() {
    const std::size_t size = 40;
    Numbers unit(size * size), x(size * size);
    std::mt19937 generator(5);
    for (std::size_t k = 0; k < size; ++k) unit[k * size + k] = 1;
    for (float& value : x) {
        const auto fraction = static_cast<float>(generator() >> 8 | 1);  // all 24 bits
        value = std::ldexp(generator() % 2 ? fraction : -fraction, static_cast<int>(generator() % 180) - 100);
    }
    expect(same(multiply(pack(unit, size, Kind::bf16, Isa::amx), x, size, {}), x.data()), "parts are not the number");
}

void check_broken_rows() {
    const std::size_t outputs = 20, inputs = 33, rows = 40;
    const PackedWeights weights = pack(random(outputs * inputs, 1), inputs, Kind::bf16, Isa::amx);
    Numbers x = random(rows * inputs, 2);
    x[3 * inputs + 32] = std::numeric_limits<float>::quiet_NaN();
    x[17 * inputs + 1] = -std::numeric_limits<float>::infinity();
    const Numbers wide = multiply(weights, x, rows, {}), rounded = widen(multiply_bf16(weights, narrow(x), {}));
    for (std::size_t i = 0; i < wide.size(); ++i) {
        const std::size_t row = i / outputs, n = i % outputs;
        for (const float y : {wide[i], rounded[i]}) {
            expect(row == 3 ? std::isnan(y) : row == 17 ? std::isinf(y) : std::isfinite(y), "a broken row", row, n);
        }
    }
}

void check_filling() {
    const Numbers values = random(50 * 45, 1);
    for (const Kind kind : {Kind::bf16, Kind::int8}) {
        PackedWeights parts(50, 45, kind, Isa::amx);
        expect(same(stored(parts), Numbers(50 * 45).data()), "not zero before it is filled");
        expect(same(multiply(parts, random(45, 2), 1, {}), Numbers(50).data()), "not a product with zero");
        for (const auto& [first, last] : {std::pair<std::size_t, std::size_t>{20, 50}, {0, 7}, {7, 20}}) {
            parts.fill(first, {values.data() + first * 45, Float::f32, last - first, 45});
        }
        expect(same(stored(parts), stored(pack(values, 45, kind, Isa::portable)).data()), "parts are not the whole");
        const std::int64_t ids[] = {49, 0, 49};
        std::vector<std::uint16_t> bits(3 * 45);
        parts.gather(ids, 3, bits.data(), Float::bf16);
        const Numbers all = stored(parts), last(all.end() - 45, all.end());
        expect(narrow(last) == std::vector<std::uint16_t>(bits.end() - 45, bits.end()), "rows looked up in bf16");
    }
}

}  // namespace

// Threads that pack and multiply rows of their own.
void check_own_rows(std::size_t outputs, std::size_t inputs, Kind kind) {
    const std::size_t rows = 515;
    const Numbers x = random(rows * inputs, 2), bias = random(outputs, 3);
    const PackedWeights weights = pack(random(outputs * inputs, 1), inputs, kind, Isa::amx);
    set_max_threads(1);
    const Numbers alone = multiply(weights, x, rows, bias);
    set_max_threads(2);
    expect(same(multiply(weights, x, rows, bias), alone.data()), "other bits with two threads", outputs, inputs, rows);
}

int main() {
#if !defined(KVTROVE_EMULATE_AMX)
    if (detect_isa() != Isa::amx) return std::puts("this processor has no AMX"), 1;  // asks Linux for it, too
#endif
    set_max_threads(2);
    std::vector<std::size_t> all;
    for (std::size_t rows = 1; rows <= 70; ++rows) all.push_back(rows);
    for (const Kind kind : {Kind::bf16, Kind::int8}) {
        Error error;
        for (const std::size_t inputs : {1, 31, 33, 64, 896}) {
            for (const std::size_t outputs : {1, 15, 17, 100}) {
                for (const std::size_t rows : {1, 18, 33}) {
                    check_against_float64({outputs, inputs, rows, kind, (outputs + inputs + rows) % 2 == 0}, error);
                }
            }
        }
        check_against_float64({896, 33, 20, kind, true}, error);
        check_against_float64({100, 896, 49, kind, false}, error);
        check_against_float64({40, 33, 1100, kind, true}, error);
        // int8: x has 15 bits instead of 16, and 256 inputs share a scale instead of 128
        expect(error.amx <= (kind == Kind::int8 ? 6 : 1.1) * error.portable, "less accurate than the portable level");
        check_batches(20, 40, kind, all);
        check_batches(17, 896, kind, {1, 16, 17, 33, 49});
        check_batches(300, 31, kind, {1, 17, 33, 199});
        check_batches(33, 1400, kind, {1, 5, 9, 17, 33, 97});  // several blocks of inputs
        check_batches(1024, 20, kind, {1, 33, 129});           // y passes by the caches
        check_own_rows(40, 33, kind);
        for (const Float type : {Float::f32, Float::bf16}) {
            check_gates(192, 40, kind, type), check_gates(64, 1400, kind, type);
        }
    }
    for (const Kind kind : {Kind::int4, Kind::int4_f32}) {
        for (const std::size_t inputs : {1, 33, 300}) check_levels(inputs, kind);
        check_batches(70, 600, kind, {1, 4, 9, 16, 17, 33, 150});
    }
    for (const Kind kind : {Kind::int8_groups, Kind::int8_groups_f32, Kind::int4_symmetric}) {
        check_levels(33, kind);
        check_batches(70, 300, kind, {1, 9, 17, 33});
    }
    check_own_rows(3, 4700, Kind::bf16);  // several blocks of inputs
    check_integers();
    check_split();
    check_broken_rows();
    check_filling();
    if (!failures) std::puts("all equal");
    return failures != 0;
}
