// AMX: keys or values of bf16, int8 and int4 in tiled layout are multiplied on tiles, everything else is AVX-512.
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
namespace amx {

constexpr int W = 16;        // lanes
constexpr int kMaxRows = 8;  // rows of a product that are computed together
constexpr int kSums = 24;    // vectors of sums that fit into the registers
constexpr int kBand = 32;    // rows whose scores are held at once

#include "common/vector/types.h"
#include KVTROVE_AMX_LANES
#include "attention/kernels/all.h"
#include "attention/kernels/amx_product.h"
#include "attention/kernels/amx_stages.h"
#include "attention/kernels/amx_select.h"

template <class Use>
void with_keys(const Step& step, Configuration& registers, const Use& use) {
    if (!on_tiles(step.layer.k, step)) return with_vector_keys(step.layer.k, use);
    if (step.layer.k.stored == Element::int8) {
        ByteKeys<false> keys(step, registers);
        return use(keys);
    }
    if (step.layer.k.stored == Element::int4) {
        ByteKeys<true> keys(step, registers);
        return use(keys);
    }
    Bfloat16Keys keys(step, registers);
    use(keys);
}

template <class Use>
void with_values(const Step& step, Configuration& registers, const Use& use) {
    if (!on_tiles(step.layer.v, step)) return with_vector_values(step.layer.v, use);
    if (step.layer.v.stored == Element::int8) {
        ByteValues<false> values(step, registers);
        return use(values);
    }
    if (step.layer.v.stored == Element::int4) {
        ByteValues<true> values(step, registers);
        return use(values);
    }
    Bfloat16Values values(step, registers);
    use(values);
}

inline void attend_best(const Step& step, const Run& run, float* workspace) {
    Configuration registers;
    with_keys(step, registers, [&](Keys& keys) {
        with_values(step, registers, [&](Values& values) { attend_run(keys, values, step, run, workspace); });
    });
}

}  // namespace amx
}  // namespace kvtrove::attention

KVTROVE_END_AMX

namespace kvtrove::attention {

constexpr int kPromptRows = 4 * amx::kBand;  // so many share what is fetched of K and V

const Level kAmx = {kPromptRows, amx::workspace_floats, amx::tile_choice_floats, amx::choose_on_tiles, amx::attend_best, amx::merge};

}  // namespace kvtrove::attention

#endif
