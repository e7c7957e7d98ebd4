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
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-bf16,amx-int8"))), apply_to = function)
#else
#define LANES "avx512_lanes.h"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

namespace kvtrove::attention {
namespace amx {

constexpr int W = 16;        // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers

#include "vector_types.h"
#include LANES
#include "vector.h"
#include "product.h"
#include "softmax.h"
#include "gather.h"
#include "pass.h"
#include "level.h"
#include "amx_product.h"
#include "amx_stages.h"

template <class Stages>
void attend_on_tiles(const Step& step, const Tile& tile, int split, float* workspace) {
    Pass pass(step, tile, workspace);
    Stages stages(pass);
    attend_by(stages, pass, split);
}

inline void attend_best(const Step& step, const Tile& tile, int split, float* workspace) {
    const bool tiled = step.layer.tiled;
    if (tiled && step.layer.stored == Element::bfloat16) {
        return attend_on_tiles<Bfloat16Stages>(step, tile, split, workspace);
    }
    if (tiled && step.layer.stored == Element::int8) return attend_on_tiles<Int8Stages>(step, tile, split, workspace);
    attend(step, tile, split, workspace);
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
