// AMX: blocks of bf16 and int8 in tiled layout are multiplied on tiles, everything else is AVX-512.
//
// With KVTROVE_EMULATE_AMX no instruction beyond the compiler's baseline is used: sixteen lanes in plain C++.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../tiles.h"
#include "convert.h"
#include "work.h"

#define INLINE [[gnu::always_inline]] inline

#if !defined(__clang__)
// gcc's own AVX-512 headers start results from variables that they leave unset on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(KVTROVE_EMULATE_AMX)
#define LANES "portable_lanes.h"
#elif defined(__clang__)
#define LANES "avx512_lanes.h"
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8"))), apply_to = function)
#else
#define LANES "avx512_lanes.h"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")
#endif

namespace kvtrove::attention {
namespace amx {

constexpr int W = 16;        // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers

#include "vector_types.h"
#include LANES
#include "vector.h"
#include "ahead.h"
#include "product.h"
#include "softmax.h"
#include "gather.h"
#include "chunk.h"
#include "pass.h"
#include "vector_stages.h"
#include "level.h"
#include "amx_product.h"
#include "amx_stages.h"

template <class Keys, class Values>
void attend_on_tiles(const Step& step, const Run& run, float* workspace) {
    Configuration registers(Keys::left_bytes(step.layer), Values::left_bytes(step.layer));
    Keys keys(step, registers);
    Values values(step, registers);
    attend_run(keys, values, step, run, workspace);
}

inline void attend_best(const Step& step, const Run& run, float* workspace) {
    const bool tiled = step.layer.tiled;
    if (tiled && step.layer.stored == Element::bfloat16) {
        return attend_on_tiles<Bfloat16Keys, Bfloat16Values>(step, run, workspace);
    }
    // A single row is no work for tiles; of int8 both have the same bits.
    if (tiled && step.layer.stored == Element::int8 && step.max_rows > 1) {
        return attend_on_tiles<Int8Keys, Int8Values>(step, run, workspace);
    }
    attend(step, run, workspace);
}

}  // namespace amx
}  // namespace kvtrove::attention

#if defined(KVTROVE_EMULATE_AMX)
#elif defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kvtrove::attention {

// Four tiles of rows share what is loaded of K and V.
const Level kAmx = {4 * tiles::kRows, amx::workspace_floats, amx::attend_best, amx::merge};

}  // namespace kvtrove::attention

#endif
