// The most multiply-adds that a level can do: from registers, with no memory in between.
#pragma once

#include <cstddef>

#include "common/isa.h"

namespace kvtrove {

// Runs `rounds` rounds of independent multiply-adds on every thread: of tiles of bf16 where the level has them, of float32
// vectors else. Returns how many operations that were (a multiply-add is two); 0: the level has nothing to measure.
double run_at_peak(Isa level, std::size_t rounds);

}  // namespace kvtrove
