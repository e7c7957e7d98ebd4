// AVX-512 F, BW, DQ, VL, VNNI and BF16: sixteen lanes. And AMX: keys or values of bf16, int8 and int4 in tiled layout are
// multiplied on tiles, everything else is the same code; so both are compiled together.
//
// With KVTROVE_EMULATE_AMX no instruction beyond the compiler's baseline is used: sixteen lanes in plain C++.
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
#include "common/amx_tiles.h"
#include "common/vector/target.h"

KVTROVE_BEGIN_AMX

namespace kvtrove::attention {
namespace avx512 {

constexpr int W = 16;        // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers

#include "common/vector/types.h"
#include KVTROVE_AMX_LANES
#include "attention/kernels/all.h"
#include "attention/kernels/amx_product.h"
#include "attention/kernels/amx_stages.h"
#include "attention/kernels/amx_select.h"
#include "attention/kernels/amx_run.h"

}  // namespace avx512
}  // namespace kvtrove::attention

KVTROVE_END_AMX

namespace kvtrove::attention {

const Level kAvx512 = avx512::level();
const Level kAmx = avx512::level_of_tiles();

}  // namespace kvtrove::attention

#endif
