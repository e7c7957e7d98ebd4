// Stands in for the levels that a test of attention does not build.
#pragma once

#include "attention/work.h"

#if defined(__x86_64__)
namespace kvtrove::attention {

#if defined(KVTROVE_TILES_ALONE)
const Level kPortable = kAmx;
#endif
const Level kAvx2 = kPortable;

}  // namespace kvtrove::attention
#endif
