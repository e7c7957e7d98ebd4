// The level of every platform: four lanes, which compilers map to SSE2, NEON or plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "convert.h"
#include "work.h"

#define INLINE [[gnu::always_inline]] inline

namespace kvtrove::attention {
namespace portable {

constexpr int W = 4;         // lanes
constexpr int kMaxRows = 6;  // rows of a product that are computed together
constexpr int kSums = 12;    // vectors of sums that fit into the registers

#include "vector_types.h"

INLINE F fma(F a, F b, F c) {
#if defined(__FP_FAST_FMAF)
    for (int i = 0; i < W; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// Products of 16-bit numbers, neighbours added.
INLINE I madd(I a, I b) { return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16); }

// The lower 16 bits of each lane are a float16.
INLINE F float_of_float16s(I x) {
    const I sign = (x & 0x8000) << 16, rest = (x & 0x7FFF) << 13;
    const I finite = (I)((F)rest * 0x1p112f);
    return (F)(sign | ((rest >= 0x7C00 << 13) ? rest | 0x7F800000 : finite));
}

#include "vector.h"
#include "product.h"
#include "softmax.h"
#include "gather.h"
#include "pass.h"
#include "level.h"

}  // namespace portable

const Level kPortable = portable::level();

}  // namespace kvtrove::attention
