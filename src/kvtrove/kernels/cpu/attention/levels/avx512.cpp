// AVX-512 F, BW, VL and VNNI: the same source as AVX2 with sixteen lanes.
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

KVTROVE_BEGIN(KVTROVE_AVX512)

namespace kvtrove::attention {
namespace avx512 {

constexpr int W = 16;         // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers
constexpr int kBand = 48;    // rows whose scores are held at once

#include "common/vector/types.h"
#include "common/vector/avx512.h"
#include "attention/kernels/all.h"

}  // namespace avx512
}  // namespace kvtrove::attention

KVTROVE_END

namespace kvtrove::attention {

const Level kAvx512 = avx512::level();

}  // namespace kvtrove::attention

#endif
