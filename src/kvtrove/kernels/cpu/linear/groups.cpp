#include "linear/groups.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/half.h"
#include "common/memory.h"
#include "common/parts.h"

namespace kvtrove::groups {

namespace {

constexpr std::size_t kPackedRows = 512; // of x that are packed at a time
constexpr std::size_t kAhead = 2560;     // bytes of a panel that are asked for before their turn

[[gnu::always_inline]] inline float widened(float x) { return x; }
[[gnu::always_inline]] inline float widened(std::uint16_t bits) { return float_of_bfloat16(bits); }

// Sums of a word of 4 or 8 inputs after the other: unpack(), then add() for each row of x.
namespace portable {
// Integers as they are, in words.
template <bool Bytes, bool Codes>
struct Dot {
    static constexpr std::int32_t kAbove = 0;  // by so much are numbers above what their codes stand for
    typedef std::int32_t Sum __attribute__((vector_size(16)));
    typedef std::uint32_t Numbers __attribute__((vector_size(16)));
    Sum sum = {};

    static Numbers unpack(const std::uint8_t* from) {
        Numbers words;
        std::memcpy(&words, from, sizeof words);
        return words;
    }
    void add(const Numbers& words, const std::int8_t* high, const std::int8_t* low) {
        for (int i = 0; i < (Bytes ? 4 : 8); ++i) {
            Sum numbers = reinterpret_cast<Sum>(words >> (i % 4 * 8 + i / 4 * 4) & (Bytes ? 255u : 15u));
            for (int lane = 0; Codes && lane < 4; ++lane) numbers[lane] = kE2M1[numbers[lane]];
            sum += numbers * (128 * high[i] + low[i]);
        }
    }
    Sum total() const { return sum; }
};

typedef float Quad __attribute__((vector_size(16)));
inline Quad halves(const std::uint8_t* from) {
    Quad values;
    for (int i = 0; i < 4; ++i) {
        std::uint16_t half;
        std::memcpy(&half, from + 2 * i, sizeof half);
        values[i] = float_of_float16(half);
    }
    return values;
}

#define KVTROVE_TARGET
#define KVTROVE_LANES 4
#define KVTROVE_ROWS 4
#define KVTROVE_HALVES(from) halves(from)
#include "linear/kernels/vector_groups.h"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_ROWS
#undef KVTROVE_HALVES
}  // namespace portable

#if defined(__x86_64__) && !defined(KVTROVE_EMULATE_AMX)  // a build for tests of tiles does without: they take long
[[gnu::always_inline]] inline std::int32_t word_at(const std::int8_t* from) {
    std::int32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

namespace avx2 {
#define KVTROVE_TARGET __attribute__((target("avx2,f16c")))
#define KVTROVE_INLINE [[gnu::always_inline]] KVTROVE_TARGET inline
// Sums of pairs of halves of bytes stay below 2^15 over a group: 16 products of 15 * 127.
struct Halves {
    __m256i high, low;

    KVTROVE_INLINE Halves() : high(_mm256_setzero_si256()), low(_mm256_setzero_si256()) {}
    // One side of such products is unsigned: signed numbers lend their signs to x.
    template <bool Signed>
    KVTROVE_INLINE static __m256i products(__m256i numbers, const std::int8_t* x) {
        const __m256i words = _mm256_set1_epi32(word_at(x));
        if constexpr (!Signed) return _mm256_maddubs_epi16(numbers, words);
        else return _mm256_maddubs_epi16(_mm256_abs_epi8(numbers), _mm256_sign_epi8(words, numbers));
    }
    template <bool Signed>
    KVTROVE_INLINE void add(__m256i numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        high = _mm256_add_epi16(high, products<Signed>(numbers, x_high));
        low = _mm256_add_epi16(low, products<Signed>(numbers, x_low));
    }
    KVTROVE_INLINE __m256i total() const {
        const __m256i ones = _mm256_set1_epi16(1);
        return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, ones), 7), _mm256_madd_epi16(low, ones));
    }
};

// Bytes are 16 * a half + a half: pairs of them as they are would pass 2^15.
template <bool Bytes, bool Codes>
struct Dot {
    static constexpr std::int32_t kAbove = 0;
    Halves first, second;
    struct Numbers {
        __m256i low, high;  // halves of the bytes
    };

    KVTROVE_INLINE Dot() : first(), second() {}
    KVTROVE_INLINE static Numbers unpack(const std::uint8_t* from) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), half = _mm256_set1_epi8(15);
        const __m256i low = _mm256_and_si256(words, half), high = _mm256_and_si256(_mm256_srli_epi16(words, 4), half);
        if constexpr (!Codes) return {low, high};
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2M1)));
        return {_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)};
    }
    KVTROVE_INLINE void add(const Numbers& numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        first.template add<Codes>(numbers.low, x_high, x_low);
        if constexpr (Bytes) second.template add<Codes>(numbers.high, x_high, x_low);
        else first.template add<Codes>(numbers.high, x_high + 4, x_low + 4);
    }
    KVTROVE_INLINE __m256i total() const {
        if constexpr (Bytes) return _mm256_add_epi32(first.total(), _mm256_slli_epi32(second.total(), 4));
        else return first.total();
    }
};

#define KVTROVE_LANES 8
#define KVTROVE_ROWS 3
#define KVTROVE_HALVES(from) (Floats) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))
#include "linear/kernels/vector_groups.h"
#undef KVTROVE_TARGET
#undef KVTROVE_INLINE
#undef KVTROVE_LANES
#undef KVTROVE_ROWS
#undef KVTROVE_HALVES
}  // namespace avx2

namespace avx512 {
#define KVTROVE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni" KVTROVE_WIDE)))
#define KVTROVE_INLINE [[gnu::always_inline]] KVTROVE_TARGET inline
template <bool Bytes, bool Codes>
struct Dot {
    typedef std::int32_t Lanes __attribute__((vector_size(64)));
    static constexpr std::int32_t kAbove = kMostE2M1;  // numbers are unsigned here
    __m512i high, low;
    struct Numbers {
        __m512i first, second;  // of each 8 inputs the first four, and the others; of bytes four alone
    };

    KVTROVE_INLINE Dot() : high(_mm512_setzero_si512()), low(_mm512_setzero_si512()) {}
    KVTROVE_INLINE static __m512i looked_up(Lanes codes) {
        __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2M1));
        table = _mm_add_epi8(table, _mm_set1_epi8(kMostE2M1));
        return _mm512_maskz_shuffle_epi8(~__mmask64{0}, _mm512_maskz_broadcast_i32x4(0xffff, table),
                                         reinterpret_cast<__m512i>(codes));
    }
    KVTROVE_INLINE static Numbers unpack(const std::uint8_t* from) {
        Lanes words;
        std::memcpy(&words, from, sizeof words);
        if constexpr (Bytes) return {reinterpret_cast<__m512i>(words), reinterpret_cast<__m512i>(words)};
        else if constexpr (Codes) return {looked_up(words & 0x0f0f0f0f), looked_up(words >> 4 & 0x0f0f0f0f)};
        else return {reinterpret_cast<__m512i>(words & 0x0f0f0f0f), reinterpret_cast<__m512i>(words >> 4 & 0x0f0f0f0f)};
    }
    KVTROVE_INLINE static __m512i with(__m512i sum, const Numbers& numbers, const std::int8_t* x) {
        sum = _mm512_dpbusd_epi32(sum, numbers.first, _mm512_set1_epi32(word_at(x)));
        if constexpr (Bytes) return sum;
        else return _mm512_dpbusd_epi32(sum, numbers.second, _mm512_set1_epi32(word_at(x + 4)));
    }
    KVTROVE_INLINE void add(const Numbers& numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        high = with(high, numbers, x_high), low = with(low, numbers, x_low);
    }
    // Written out: gcc takes its own header's shifts for reads of what was never written.
    KVTROVE_INLINE __m512i total() const {
        return reinterpret_cast<__m512i>((reinterpret_cast<Lanes>(high) << 7) + reinterpret_cast<Lanes>(low));
    }
};

#define KVTROVE_LANES 16
#define KVTROVE_ROWS 6
// with a mask of all lanes: as above
#define KVTROVE_HALVES(from) \
    (Floats) _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))
#include "linear/kernels/vector_groups.h"
#undef KVTROVE_TARGET
#undef KVTROVE_INLINE
#undef KVTROVE_LANES
#undef KVTROVE_ROWS
#undef KVTROVE_HALVES
}  // namespace avx512
#endif

// The nearest integers for a scale and a minimum, and how far off all of them are, squared.
double round_to(const float* values, std::size_t count, float scale, float minimum, std::uint8_t* numbers) {
    double off = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const float steps = scale > 0 ? std::nearbyint((values[i] - minimum) / scale) : 0;
        numbers[i] = static_cast<std::uint8_t>(std::clamp(steps, 0.0f, 15.0f));
        const double error = static_cast<double>(numbers[i]) * scale + minimum - values[i];
        off += error * error;
    }
    return off;
}

float as_half(float value) { return float_of_float16(float16_of_float(value)); }

// The line that is nearest to the values at their integers: least squares. False where all integers are the same.
bool fit(const float* values, std::size_t count, const std::uint8_t* numbers, float& scale, float& minimum) {
    double n = static_cast<double>(count), q = 0, qq = 0, v = 0, qv = 0;
    for (std::size_t i = 0; i < count; ++i) {
        q += numbers[i], qq += numbers[i] * numbers[i], v += values[i], qv += static_cast<double>(numbers[i]) * values[i];
    }
    const double spread = n * qq - q * q;
    if (spread <= 0) return false;
    scale = as_half(static_cast<float>((n * qv - q * v) / spread));
    minimum = as_half(static_cast<float>((v - scale * q) / n));
    return std::isfinite(scale) && std::isfinite(minimum);
}

bool quantise_group(const float* values, std::size_t count, std::uint8_t* numbers, float& scale, float& minimum) {
    const auto [least, most] = std::minmax_element(values, values + count);
    scale = as_half((*most - *least) / 15), minimum = as_half(*least);
    if (!std::isfinite(scale) || !std::isfinite(minimum)) return false;
    double off = round_to(values, count, scale, minimum, numbers);
    float other_scale, other_minimum;
    for (int round = 0; round < 4 && fit(values, count, numbers, other_scale, other_minimum); ++round) {
        std::uint8_t others[kGroup];
        const double other_off = round_to(values, count, other_scale, other_minimum, others);
        if (other_off >= off) break;
        off = other_off, scale = other_scale, minimum = other_minimum;
        std::copy_n(others, count, numbers);
    }
    return true;
}

// Bytes from -127 on; halves from -8 on, which the largest number becomes.
bool quantise_symmetric(const float* values, std::size_t count, std::uint8_t* numbers, float& scale, Form form) {
    float largest = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (std::fabs(values[i]) > std::fabs(largest)) largest = values[i];
    }
    const bool bytes = has_bytes(form);
    const float least = bytes ? -127.0f : -8.0f, most = bytes ? 127.0f : 7.0f;
    scale = as_half(bytes ? std::fabs(largest) / most : largest / least);
    for (std::size_t i = 0; i < count; ++i) {
        const float steps = scale != 0 ? std::nearbyint(values[i] / scale) : 0;
        numbers[i] = static_cast<std::uint8_t>(zero_of(form) + std::clamp(steps, least, most));
    }
    return std::isfinite(scale);
}

}  // namespace

// x is packed once, for all threads.
void multiply(const Means& level, const Product& all, std::size_t all_rows) {
    const auto pack = level.pack[all.type == Float::bf16];
    const auto run = level.run[static_cast<std::size_t>(all.form)];
    in_pieces(all_rows, kPackedRows, [&](std::size_t first, std::size_t rows) {
        const Product job = all.from(first);
        const std::size_t stretches = ceil_div(job.inputs, kStretch);
        auto* x = reinterpret_cast<Stretch*>(scratch((rows * stretches + kRowsBehind) * sizeof(Stretch)));
        constexpr std::size_t kCost = 16;  // multiply-adds that take as long as packing a number
        parallel_ranges(rows, threads_for(rows * job.inputs * kCost),
                        [&](std::size_t begin, std::size_t end) { pack(job, begin, end, rows, x); });
        const std::size_t panels = ceil_div(job.outputs, kWidth), work = rows * job.inputs * job.outputs;
        if (rows <= kMostRows) {
            return in_runs(panels, 1, threads_for(work),
                           [&](std::size_t begin, std::size_t end) { run(job, x, rows, {0, rows, begin, end}); });
        }
        in_parts({rows, panels, work, kMostRows, panels, 1},
                 [&](const Part& part, std::size_t) { run(job, x, rows, part); });
    });
}

const Means& portable_means() { return portable::kMeans; }
void multiply_portable(const Product& job, std::size_t rows) { multiply(portable::kMeans, job, rows); }
#if defined(__x86_64__) && !defined(KVTROVE_EMULATE_AMX)
const Means& avx512_means() { return avx512::kMeans; }
void multiply_avx2(const Product& job, std::size_t rows) { multiply(avx2::kMeans, job, rows); }
void multiply_avx512(const Product& job, std::size_t rows) { multiply(avx512::kMeans, job, rows); }
#endif

bool quantise(const float* values, std::size_t inputs, const Row& to, Form form) {
    for (std::size_t k = 0; k < inputs; k += kGroup) {
        const std::size_t count = std::min(kGroup, inputs - k);
        std::uint8_t* numbers = to.numbers + k;
        float &scale = to.scales[k / kGroup], &minimum = to.minima[k / kGroup];
        std::fill_n(numbers, kGroup, std::uint8_t{0});
        if (zero_of(form)) {
            if (!quantise_symmetric(values + k, count, numbers, scale, form)) return false;
            minimum = -static_cast<float>(zero_of(form)) * scale;
        } else if (!quantise_group(values + k, count, numbers, scale, minimum)) {
            return false;
        }
    }
    return true;
}

namespace {

// Where the byte of an input is, and by how many bits its integer is shifted there.
struct Place {
    std::size_t byte;
    int shift;

    Place(std::size_t at, std::size_t input, Form form)
        : byte(input / kGroup * group_bytes(form) + head_bytes(form) +
               input % kGroup / word_inputs(form) * kWordsBytes + at * 4 + input % 4),
          shift(input % word_inputs(form) / 4 * 4) {}
};

}  // namespace

void put(std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, Form form) {
    for (std::size_t group = 0; group < ceil_div(inputs, kGroup); ++group) {
        std::uint8_t* head = panel + group * group_bytes(form) + at * scale_bytes(form);
        for (const float* lines : {row.scales, row.minima}) {
            if (lines == row.minima && !has_minima(form)) break;
            const std::uint16_t half = float16_of_float(lines[group]);
            is_wide(form) ? std::memcpy(head, lines + group, sizeof *lines) : std::memcpy(head, &half, sizeof half);
            head += scales_bytes(form);
        }
    }
    const int mask = static_cast<int>(most_number(form));
    for (std::size_t k = 0; k < ceil_div(inputs, kGroup) * kGroup; ++k) {
        const Place place(at, k, form);
        std::uint8_t& byte = panel[place.byte];
        byte = static_cast<std::uint8_t>((byte & ~(mask << place.shift)) | row.numbers[k] << place.shift);
    }
}

void get(const std::uint8_t* panel, std::size_t at, const Row& row, std::size_t inputs, Form form) {
    for (std::size_t group = 0; group < ceil_div(inputs, kGroup); ++group) {
        const std::uint8_t* head = panel + group * group_bytes(form) + at * scale_bytes(form);
        for (float* value : {row.scales + group, row.minima + group}) {
            std::uint16_t half;
            std::memcpy(&half, head, sizeof half);
            if (is_wide(form)) std::memcpy(value, head, sizeof *value);
            else *value = float_of_float16(half);
            head += scales_bytes(form);
        }
        if (!has_minima(form)) row.minima[group] = -static_cast<float>(zero_of(form)) * row.scales[group];
    }
    const int mask = static_cast<int>(most_number(form));
    for (std::size_t k = 0; k < ceil_div(inputs, kGroup) * kGroup; ++k) {
        const Place place(at, k, form);
        row.numbers[k] = static_cast<std::uint8_t>(panel[place.byte] >> place.shift & mask);
    }
}

}  // namespace kvtrove::groups
