// Vectors as they are stored, back to float32: the numbers that products with them amount to.
#pragma once

#include "attention/attention.h"

namespace kvtrove::attention {

// to: [dim], the vector of a side in a slot. Not of codes by channel, nor of int2, which are sealed. The same arithmetic as
// `decode` in kv/formats.
void load_vector(const Layer& layer, const Side& side, std::int64_t slot, int head, bool keys, float* to);

}  // namespace kvtrove::attention
