// AVX2, FMA and F16C: eight lanes.
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

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace kvtrove::attention {
namespace avx2 {

constexpr int W = 8;         // lanes
constexpr int kMaxRows = 6;  // rows of a product that are computed together
constexpr int kSums = 12;    // vectors of sums that fit into the registers
constexpr int kBand = 48;    // rows whose scores are held at once

#include "common/vector/types.h"

// b where one is a NaN.
INLINE F larger(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }

// In place: left to itself, gcc lets sums wander between registers in the long unrolled products, and spills them.
INLINE F fma(F a, F b, F c) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
}

// sum plus the products of the 16-bit numbers in a and b, neighbours added. At once: gcc would make all products first, and
constexpr bool kByteProducts = false;
#include "common/vector/plain_bytes.h"

// spill them.
INLINE I add_pairs(I sum, I a, I b) {
    I product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
    return sum;
}

// The lower 16 bits of each lane are a float16.
INLINE F float_of_float16s(I x) {
    const __m256i low = (__m256i)(x & 0xFFFF), packed = _mm256_packus_epi32(low, low);
    return (F)_mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

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

}  // namespace avx2
}  // namespace kvtrove::attention

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kvtrove::attention {

const Level kAvx2 = avx2::level();

}  // namespace kvtrove::attention

#endif
