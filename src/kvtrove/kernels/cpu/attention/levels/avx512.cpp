// AVX-512 F, BW, VL and VNNI: the same source as AVX2 with sixteen lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "attention/codecs/convert.h"
#include "attention/codecs/turn.h"
#include "attention/work.h"

#define INLINE [[gnu::always_inline]] inline

#if !defined(__clang__)
// gcc's own AVX-512 headers start results from variables that they leave unset on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#endif

namespace kvtrove::attention {
namespace avx512 {

constexpr int W = 16;         // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers
constexpr int kBand = 48;    // rows whose scores are held at once

#include "common/vector/types.h"
#include "common/vector/avx512.h"
#include "common/vector/vector.h"
#include "attention/kernels/ahead.h"
#include "attention/kernels/product.h"
#include "attention/kernels/softmax.h"
#include "attention/kernels/gather.h"
#include "attention/codecs/unpack.h"
#include "attention/kernels/chunk.h"
#include "attention/kernels/pass.h"
#include "attention/kernels/select.h"
#include "attention/kernels/vector_stages.h"
#include "attention/kernels/run.h"

}  // namespace avx512
}  // namespace kvtrove::attention

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kvtrove::attention {

const Level kAvx512 = avx512::level();

}  // namespace kvtrove::attention

#endif
