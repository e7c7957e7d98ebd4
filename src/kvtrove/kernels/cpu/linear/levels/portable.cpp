// The level of every platform: four lanes, which compilers map to SSE2, NEON or plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/memory.h"
#include "common/vector/target.h"
#include "linear/groups.h"
#include "linear/level.h"

namespace kvtrove {

namespace portable {

constexpr int W = 4;  // lanes
// Vectors of sums that fit into the registers beside weights and x.
#if defined(__aarch64__)
constexpr std::size_t kSums = 24;
#else
constexpr std::size_t kSums = 12;
#endif

#include "common/vector/types.h"
#include "common/vector/portable.h"
#include "common/vector/vector.h"
#include "linear/kernels/vector_bf16.h"
#include "linear/kernels/vector_int8.h"

}  // namespace portable

namespace groups::portable {

using namespace kvtrove::portable;

constexpr std::size_t kAtOnce = 4;  // rows whose sums fit into the registers

// Integers as they are, in words.
template <bool Bytes>
struct Dot {
    I sum = {};

    INLINE static U unpack(const std::uint8_t* from) { return (U)load(reinterpret_cast<const std::int32_t*>(from)); }
    INLINE void add(const U& words, const std::int8_t* high, const std::int8_t* low) {
        for (int i = 0; i < (Bytes ? 4 : 8); ++i) {
            const U numbers = words >> (i % 4 * 8 + i / 4 * 4) & (Bytes ? 255u : 15u);
            sum += (I)numbers * (128 * high[i] + low[i]);
        }
    }
    INLINE I total() const { return sum; }
};

#include "linear/kernels/vector_groups.h"

}  // namespace groups::portable

}  // namespace kvtrove

namespace kvtrove {

const LinearLevel kPortableLevel = {layout_of<portable::Places>(), portable::kRowsAtOnce, false, portable::multiply,
                                     groups::portable::multiply};

#if !defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)
namespace groups {
const Means& means_beside_tiles() { return portable::kMeans; }
}  // namespace groups
#endif

}  // namespace kvtrove
