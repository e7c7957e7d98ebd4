// AVX2, FMA and F16C: eight lanes.
#if defined(__x86_64__) && !defined(KVTROVE_EMULATE_AMX)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/memory.h"
#include "common/vector/target.h"
#include "linear/int4.h"
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

namespace int4::avx2 {

using namespace kvtrove::avx2;

constexpr std::size_t kAtOnce = 3;  // rows whose sums fit into the registers

// Sums of pairs stay below 2^15 over a group: 16 products of 15 * 127.
struct Dot {
    __m256i high, low;
    struct Numbers {
        __m256i first, second;  // of each 8 inputs the first four, and the others
    };

    INLINE Dot() : high(_mm256_setzero_si256()), low(_mm256_setzero_si256()) {}
    INLINE static Numbers unpack(const std::uint8_t* from) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), half = _mm256_set1_epi8(15);
        return {_mm256_and_si256(words, half), _mm256_and_si256(_mm256_srli_epi16(words, 4), half)};
    }
    INLINE static __m256i pairs(const Numbers& numbers, const std::int8_t* x) {
        return _mm256_add_epi16(_mm256_maddubs_epi16(numbers.first, _mm256_set1_epi32(word_at(x))),
                                _mm256_maddubs_epi16(numbers.second, _mm256_set1_epi32(word_at(x + 4))));
    }
    INLINE void add(const Numbers& numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        high = _mm256_add_epi16(high, pairs(numbers, x_high));
        low = _mm256_add_epi16(low, pairs(numbers, x_low));
    }
    INLINE I total() const {
        const __m256i ones = _mm256_set1_epi16(1);
        return (I)_mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, ones), 7), _mm256_madd_epi16(low, ones));
    }
};

#include "linear/kernels/vector_int4.h"

}  // namespace int4::avx2

}  // namespace kvtrove

KVTROVE_END

namespace kvtrove {

const LinearLevel kAvx2Level = {layout_of<avx2::Places>(), avx2::kRowsAtOnce, false, avx2::multiply,
                                 int4::avx2::multiply};

}  // namespace kvtrove
#endif
