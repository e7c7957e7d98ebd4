// AVX2, FMA and F16C: eight lanes.
#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "attention/codecs/convert.h"
#include "attention/codecs/turn.h"
#include "attention/work.h"
#include "common/vector/target.h"

KVTROVE_BEGIN(KVTROVE_AVX2)

namespace kvtrove::attention {
namespace avx2 {

constexpr int W = 8;         // lanes
constexpr int kMaxRows = 6;  // rows of a product that are computed together
constexpr int kSums = 12;    // vectors of sums that fit into the registers

#include "common/vector/types.h"
#include "common/vector/avx2.h"
#include "attention/kernels/all.h"

}  // namespace avx2
}  // namespace kvtrove::attention

KVTROVE_END

namespace kvtrove::attention {

const Level kAvx2 = avx2::level();

}  // namespace kvtrove::attention

#endif
