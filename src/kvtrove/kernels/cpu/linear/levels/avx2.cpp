// AVX2, FMA and F16C: eight lanes.
#if defined(__x86_64__) && !defined(KVTROVE_EMULATE_AMX)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/memory.h"
#include "common/vector/target.h"
#include "linear/groups.h"
#include "linear/level.h"

KVTROVE_BEGIN(KVTROVE_AVX2)

namespace kvtrove {

namespace avx2 {

constexpr int W = 8;  // lanes
constexpr std::size_t kSums = 12;  // vectors of sums that fit into the registers beside weights and x

#include "common/vector/types.h"
#include "common/vector/avx2.h"
#include "common/vector/vector.h"
#include "linear/kernels/vector_bf16.h"
#include "linear/kernels/vector_int8.h"

}  // namespace avx2

namespace groups::avx2 {

using namespace kvtrove::avx2;

constexpr std::size_t kAtOnce = 3;  // rows whose sums fit into the registers

// Sums of pairs of halves of bytes stay below 2^15 over a group: 16 products of 15 * 127.
struct Halves {
    __m256i high, low;

    INLINE Halves() : high(_mm256_setzero_si256()), low(_mm256_setzero_si256()) {}
    INLINE void add(__m256i numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(numbers, _mm256_set1_epi32(word_at(x_high))));
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(numbers, _mm256_set1_epi32(word_at(x_low))));
    }
    INLINE I total() const {
        const __m256i ones = _mm256_set1_epi16(1);
        return ((I)_mm256_madd_epi16(high, ones) << 7) + (I)_mm256_madd_epi16(low, ones);
    }
};

// Bytes are 16 * a half + a half: pairs of them as they are would pass 2^15.
template <bool Bytes>
struct Dot {
    Halves first, second;
    struct Numbers {
        __m256i low, high;  // halves of the bytes
    };

    INLINE Dot() : first(), second() {}
    INLINE static Numbers unpack(const std::uint8_t* from) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), half = _mm256_set1_epi8(15);
        return {_mm256_and_si256(words, half), _mm256_and_si256(_mm256_srli_epi16(words, 4), half)};
    }
    INLINE void add(const Numbers& numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        first.add(numbers.low, x_high, x_low);
        if constexpr (Bytes) second.add(numbers.high, x_high, x_low);
        else first.add(numbers.high, x_high + 4, x_low + 4);
    }
    INLINE I total() const {
        if constexpr (Bytes) return first.total() + (second.total() << 4);
        else return first.total();
    }
};

#include "linear/kernels/vector_groups.h"

}  // namespace groups::avx2

}  // namespace kvtrove

KVTROVE_END

namespace kvtrove {

const LinearLevel kAvx2Level = {layout_of<avx2::Places>(), avx2::kRowsAtOnce, false, avx2::multiply,
                                 groups::avx2::multiply};

}  // namespace kvtrove
#endif
