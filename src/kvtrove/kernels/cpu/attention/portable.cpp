// The level of every platform: four lanes, which compilers map to SSE2, NEON or plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "convert.h"
#include "turn.h"
#include "work.h"

#define INLINE [[gnu::always_inline]] inline

namespace kvtrove::attention {
namespace portable {

constexpr int W = 4;         // lanes
constexpr int kMaxRows = 6;  // rows of a product that are computed together
constexpr int kSums = 12;    // vectors of sums that fit into the registers
constexpr int kBand = 48;    // rows whose scores are held at once

#include "vector_types.h"
#include "portable_lanes.h"
#include "vector.h"
#include "ahead.h"
#include "product.h"
#include "softmax.h"
#include "gather.h"
#include "unpack.h"
#include "chunk.h"
#include "pass.h"
#include "vector_stages.h"
#include "level.h"

}  // namespace portable

const Level kPortable = portable::level();

}  // namespace kvtrove::attention
