// The level of every platform: four lanes, which compilers map to SSE2, NEON or plain code.
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

namespace kvtrove::attention {
namespace portable {

constexpr int W = 4;         // lanes
constexpr int kMaxRows = 6;  // rows of a product that are computed together
constexpr int kSums = 12;    // vectors of sums that fit into the registers

#include "common/vector/types.h"
#include "common/vector/portable.h"
#include "attention/kernels/all.h"

}  // namespace portable

const Level kPortable = portable::level();

}  // namespace kvtrove::attention
