// AVX-512 F, BW, VL and VNNI: sixteen lanes.
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

KVTROVE_BEGIN(KVTROVE_AVX512)

namespace kvtrove {

namespace avx512 {

constexpr int W = 16;  // lanes
constexpr std::size_t kSums = 24;  // vectors of sums that fit into the registers beside weights and x

#include "common/vector/types.h"
#include "common/vector/avx512.h"
#include "common/vector/vector.h"
#include "linear/kernels/vector_bf16.h"
#include "linear/kernels/vector_int8.h"

}  // namespace avx512

namespace groups::avx512 {

using namespace kvtrove::avx512;

constexpr std::size_t kAtOnce = 6;  // rows whose sums fit into the registers

template <bool Bytes>
struct Dot {
    I high = {}, low = {};
    struct Numbers {
        I first, second;  // of each 8 inputs the first four, and the others; of bytes four alone
    };

    INLINE static Numbers unpack(const std::uint8_t* from) {
        const I words = load(reinterpret_cast<const std::int32_t*>(from));
        if constexpr (Bytes) return {words, words};
        else return {words & 0x0f0f0f0f, words >> 4 & 0x0f0f0f0f};
    }
    INLINE static I with(I sum, const Numbers& numbers, const std::int8_t* x) {
        sum = add_quads(sum, numbers.first, all(word_at(x)));
        if constexpr (Bytes) return sum;
        else return add_quads(sum, numbers.second, all(word_at(x + 4)));
    }
    INLINE void add(const Numbers& numbers, const std::int8_t* x_high, const std::int8_t* x_low) {
        high = with(high, numbers, x_high), low = with(low, numbers, x_low);
    }
    INLINE I total() const { return (high << 7) + low; }
};

#include "linear/kernels/vector_groups.h"

}  // namespace groups::avx512

}  // namespace kvtrove

KVTROVE_END

namespace kvtrove {

const LinearLevel kAvx512Level = {layout_of<avx512::Places>(), avx512::kRowsAtOnce, false, avx512::multiply,
                                   groups::avx512::multiply};

namespace groups {
const Means& means_beside_tiles() { return avx512::kMeans; }
}  // namespace groups

}  // namespace kvtrove
#endif
