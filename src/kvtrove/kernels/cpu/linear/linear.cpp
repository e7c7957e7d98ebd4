#include "linear/linear.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/memory.h"
#include "common/parts.h"
#include "linear/groups.h"
#include "linear/level.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed weights are read as little-endian words");

namespace kvtrove {

namespace {

void widen(const void* values, Float type, std::size_t from, std::size_t count, float* out) {
    if (type == Float::f32) {
        std::memcpy(out, static_cast<const float*>(values) + from, count * sizeof(float));
        return;
    }
    const auto* bits = static_cast<const std::uint16_t*>(values) + from;
    for (std::size_t i = 0; i < count; ++i) out[i] = float_of_bfloat16(bits[i]);
}

[[gnu::always_inline]] inline float widened(float x) { return x; }
[[gnu::always_inline]] inline float widened(std::uint16_t bits) { return float_of_bfloat16(bits); }

namespace portable {
#define KVTROVE_TARGET
#define KVTROVE_LANES 4
#if defined(__aarch64__)
#define KVTROVE_SUMS 24
#else
#define KVTROVE_SUMS 12
#endif
#define KVTROVE_GROUPS groups::multiply_portable
#if defined(__SSE2__)
#define KVTROVE_ADD_PAIRS(sum, a, b) sum += (Ints)_mm_madd_epi16((__m128i)(a), (__m128i)(b))
#else
#define KVTROVE_ADD_PAIRS(sum, a, b) sum += ((a) << 16 >> 16) * ((b) << 16 >> 16) + ((a) >> 16) * ((b) >> 16)
#endif
#include "linear/kernels/vector_bf16.h"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
#undef KVTROVE_GROUPS
#undef KVTROVE_ADD_PAIRS
}  // namespace portable

#if defined(__x86_64__) && !defined(KVTROVE_EMULATE_AMX)  // a build for tests of tiles does without: they take long
#define KVTROVE_VECTORS
namespace avx2 {
#define KVTROVE_TARGET __attribute__((target("avx2,fma")))
#define KVTROVE_LANES 8
#define KVTROVE_SUMS 12
#define KVTROVE_GROUPS groups::multiply_avx2
// In place and at once: left to itself, gcc makes all products first, adds them up in another order, and spills them.
#define KVTROVE_ADD_PAIRS(sum, a, b)                                                                     \
    do {                                                                                                 \
        Ints product;                                                                                    \
        asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b)); \
    } while (false)
#include "linear/kernels/vector_bf16.h"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
#undef KVTROVE_GROUPS
#undef KVTROVE_ADD_PAIRS
}  // namespace avx2

namespace avx512 {
#define KVTROVE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma" KVTROVE_WIDE)))
#define KVTROVE_LANES 16
#define KVTROVE_SUMS 24
#define KVTROVE_GROUPS groups::multiply_avx512
#define KVTROVE_ADD_PAIRS(sum, a, b) sum = (Ints)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
#include "linear/kernels/vector_bf16.h"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
#undef KVTROVE_GROUPS
#undef KVTROVE_ADD_PAIRS
}  // namespace avx512
#endif

const LinearLevel& level_of(Isa isa) {
#if defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)
    if (isa == Isa::amx) return kAmxLevel;
#endif
#if defined(KVTROVE_VECTORS)
    if (isa >= Isa::avx512) return avx512::kLevel;
    if (isa == Isa::avx2) return avx2::kLevel;
#else
    (void)isa;
#endif
    return portable::kLevel;
}

}  // namespace

// A row of W as it is stored, in the order of its inputs.
struct PackedWeights::Row {
    explicit Row(std::size_t inputs)
        : bf16(inputs), int8(inputs), numbers(ceil_div(inputs, groups::kGroup) * groups::kGroup),
          lines(2 * ceil_div(inputs, groups::kGroup)) {}

    groups::Row groups() { return {numbers.data(), lines.data(), lines.data() + lines.size() / 2}; }

    std::vector<std::uint16_t> bf16;
    std::vector<std::int8_t> int8;
    std::vector<std::uint8_t> numbers;
    std::vector<float> lines;  // scales and minima
};

std::size_t PackedWeights::width() const { return grouped() ? groups::kWidth : level_->layout.width; }

std::size_t PackedWeights::panels() const { return ceil_div(outputs_, width()); }

std::size_t PackedWeights::panel_bytes() const {
    if (grouped()) return groups::panel_bytes(inputs_, form());
    const bool int8 = kind_ == Kind::int8;
    return level_->layout.elements(inputs_, int8) * (int8 ? 1 : 2);
}

std::size_t PackedWeights::nbytes() const {
    return panels() * (panel_bytes() + (scales_ ? level_->layout.width * sizeof(float) : 0));
}

PackedWeights::PackedWeights(std::size_t outputs, std::size_t inputs, Kind kind, Isa isa)
    : outputs_(outputs), inputs_(inputs), kind_(kind), level_(&level_of(isa)) {
    if (!outputs || !inputs) {
        throw std::invalid_argument("weights of shape [" + std::to_string(outputs) + ", " + std::to_string(inputs) +
                                    "]: both must be at least 1");
    }
    const std::size_t bytes = panels() * panel_bytes();
    data_ = take_pages(bytes);
    std::memset(data_.get(), 0, bytes);
    page_arena().collapse(data_.get(), bytes);
    if (kind == Kind::int8) scales_ = std::make_unique<float[]>(panels() * level_->layout.width);
}

void PackedWeights::fill(std::size_t first_output, const FloatMatrix& source) {
    if (kind_ == Kind::fp4) throw std::invalid_argument("fp4 weights are filled with codes, not with numbers");
    check_fit(first_output, source.rows, source.cols);
    std::atomic<std::ptrdiff_t> broken{-1};
    parallel_ranges(source.rows, threads_for(source.rows * inputs_), [&](std::size_t begin, std::size_t end) {
        std::vector<float> values(inputs_);
        Row row(inputs_);
        for (std::size_t i = begin; i < end; ++i) {
            widen(source.data, source.type, i * inputs_, inputs_, values.data());
            const bool finite = std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
            if ((kind_ != Kind::bf16 && !finite) || !fill_row(first_output + i, values.data(), row)) {
                broken = static_cast<std::ptrdiff_t>(i);
            }
        }
    });
    if (broken >= 0) {
        throw std::invalid_argument("row " + std::to_string(broken.load()) + " of the source holds a NaN or an infinity" +
                                    (!grouped() ? ", which int8 cannot" : " or more than 65,504, which groups cannot") +
                                    "; use bf16 weights");
    }
}

void PackedWeights::fill_groups(std::size_t first_output, std::size_t count, const std::uint8_t* numbers,
                                const float* scales, const float* minima) {
    if (!grouped()) throw std::invalid_argument("groups of numbers fill weights in groups only: int4 or int8_groups");
    check_fit(first_output, count, inputs_);
    const std::size_t groups = ceil_div(inputs_, groups::kGroup);
    const bool wide = groups::is_wide(form()), minimal = groups::has_minima(form());
    const auto fits = [&](float v) { return std::isfinite(v) && (wide || float_of_float16(float16_of_float(v)) == v); };
    for (const float* lines : {scales, minimal ? minima : scales}) {
        if (std::all_of(lines, lines + count * groups, fits)) continue;
        throw std::invalid_argument(wide ? "a scale or a minimum is not finite"
                                         : "a scale or a minimum is not a finite float16; weights of _f32 hold float32");
    }
    const float times = -static_cast<float>(groups::zero_of(form()));
    const auto symmetric = [&](float scale, float minimum) { return minimum == times * scale; };
    if (!minimal && !std::equal(scales, scales + count * groups, minima, symmetric)) {
        throw std::invalid_argument("a minimum is not " + std::to_string(-groups::zero_of(form())) +
                                    " times its scale; int4 and int8_groups_f32 weights hold any");
    }
    const std::size_t most = groups::most_number(form());
    if (std::any_of(numbers, numbers + count * inputs_, [&](std::uint8_t q) { return q > most; })) {
        throw std::invalid_argument("a number is beyond " + std::to_string(most) + ", the largest of these bits");
    }
    parallel_ranges(count, threads_for(count * inputs_), [&](std::size_t begin, std::size_t end) {
        Row row(inputs_);
        const groups::Row to = row.groups();
        for (std::size_t i = begin; i < end; ++i) {
            std::copy_n(numbers + i * inputs_, inputs_, to.numbers);
            std::copy_n(scales + i * groups, groups, to.scales), std::copy_n(minima + i * groups, groups, to.minima);
            groups::put(panel_of(first_output + i), (first_output + i) % width(), to, inputs_, form());
        }
    });
}

void PackedWeights::check_fit(std::size_t first_output, std::size_t rows, std::size_t cols) const {
    if (cols == inputs_ && first_output <= outputs_ && rows <= outputs_ - first_output) return;
    throw std::invalid_argument("a source of shape [" + std::to_string(rows) + ", " + std::to_string(cols) +
                                "] does not fit at output " + std::to_string(first_output) + " of weights [" +
                                std::to_string(outputs_) + ", " + std::to_string(inputs_) + "]");
}

std::uint8_t* PackedWeights::panel_of(std::size_t output) const {
    return data_.get() + output / width() * panel_bytes();
}

// False: groups have no numbers for these.
bool PackedWeights::fill_row(std::size_t output, const float* values, Row& row) {
    const Layout& layout = level_->layout;
    auto* panel = panel_of(output);
    if (grouped()) {
        const groups::Row to = row.groups();
        if (!groups::quantise(values, inputs_, to, form())) return false;
        groups::put(panel, output % width(), to, inputs_, form());
        return true;
    }
    if (kind_ == Kind::bf16) {
        for (std::size_t k = 0; k < inputs_; ++k) row.bf16[k] = bfloat16_of_float(values[k]);
        layout.put_bf16(panel, output % layout.width, row.bf16.data(), inputs_);
        return true;
    }
    float largest = 0;
    for (std::size_t k = 0; k < inputs_; ++k) largest = std::max(largest, std::fabs(values[k]));
    const float scale = largest / 127;
    scales_[output] = scale;
    for (std::size_t k = 0; k < inputs_; ++k) {
        const float steps = scale > 0 ? std::nearbyint(values[k] / scale) : 0;
        row.int8[k] = static_cast<std::int8_t>(std::clamp(steps, -127.0f, 127.0f));
    }
    layout.put_int8(panel, output % layout.width, row.int8.data(), inputs_);
    return true;
}

void PackedWeights::read_row(std::size_t output, float* values, Row& row) const {
    const Layout& layout = level_->layout;
    const auto* panel = panel_of(output);
    if (grouped()) {
        const groups::Row from = row.groups();
        groups::get(panel, output % width(), from, inputs_, form());
        for (std::size_t k = 0; k < inputs_; ++k) {
            const int number = groups::has_codes(form()) ? groups::kE2M1[from.numbers[k]] : from.numbers[k];
            values[k] = from.scales[k / groups::kGroup] * static_cast<float>(number) + from.minima[k / groups::kGroup];
        }
        return;
    }
    if (kind_ == Kind::bf16) {
        layout.get_bf16(panel, output % layout.width, row.bf16.data(), inputs_);
        for (std::size_t k = 0; k < inputs_; ++k) values[k] = float_of_bfloat16(row.bf16[k]);
        return;
    }
    layout.get_int8(panel, output % layout.width, row.int8.data(), inputs_);
    const float scale = scales_[output];
    for (std::size_t k = 0; k < inputs_; ++k) values[k] = row.int8[k] * scale;
}

void PackedWeights::multiply(const void* x, void* y, Float type, std::size_t rows, const float* bias) const {
    run({data_.get(), panel_bytes(), inputs_, outputs_, scales_.get(), bias, x, y, type, false, false, form()}, rows);
}

void PackedWeights::multiply_heads(const void* x, void* y, Float type, std::size_t rows, std::size_t heads,
                                   std::size_t each) const {
    const std::size_t padded = heads ? outputs_ / heads : 0;
    if (!heads || outputs_ % heads || padded % width() || each > padded || kind_ != Kind::bf16) {
        throw std::invalid_argument("these weights do not have heads of whole panels in bf16");
    }
    const std::size_t bytes = bytes_of(type);
    parallel(heads, threads_for(rows * outputs_ * inputs_), [&](std::size_t head, std::size_t) {
        run({panel_of(head * padded), panel_bytes(), inputs_, each, nullptr, nullptr,
             static_cast<const std::uint8_t*>(x) + head * rows * inputs_ * bytes,
             static_cast<std::uint8_t*>(y) + head * rows * each * bytes, type},
            rows);
    });
}

bool PackedWeights::gates() const { return level_->gates && !grouped() && outputs_ % (2 * width()) == 0; }

void PackedWeights::multiply_gated(const void* x, void* y, Float type, std::size_t rows, const float* bias) const {
    if (!gates()) throw std::invalid_argument("these weights do not serve gated products");
    run({data_.get(), panel_bytes(), inputs_, outputs_, scales_.get(), bias, x, y, type, false, true}, rows);
}

std::size_t PackedWeights::rows_at_once() const { return level_->rows_at_once; }

void PackedWeights::run(const Product& product, std::size_t rows) const {
    if (rows) (grouped() ? level_->multiply_groups : level_->multiply)(product, rows);
}

void PackedWeights::gather(const std::int64_t* ids, std::size_t count, void* y, Float type) const {
    for (std::size_t i = 0; i < count; ++i) {
        if (ids[i] >= 0 && static_cast<std::size_t>(ids[i]) < outputs_) continue;
        throw std::out_of_range("ids[" + std::to_string(i) + "] is row " + std::to_string(ids[i]) +
                                ", but the weights have " + std::to_string(outputs_) + " rows");
    }
    parallel_ranges(count, threads_for(count * inputs_), [&](std::size_t begin, std::size_t end) {
        std::vector<float> values(inputs_);
        Row row(inputs_);
        for (std::size_t i = begin; i < end; ++i) {
            read_row(ids[i], values.data(), row);
            if (type == Float::f32) {
                std::memcpy(static_cast<float*>(y) + i * inputs_, values.data(), inputs_ * sizeof(float));
                continue;
            }
            auto* to = static_cast<std::uint16_t*>(y) + i * inputs_;
            for (std::size_t k = 0; k < inputs_; ++k) to[k] = bfloat16_of_float(values[k]);
        }
    });
}

}  // namespace kvtrove
