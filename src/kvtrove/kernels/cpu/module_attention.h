// Python's view of the attention kernels.
#pragma once

#include <nanobind/nanobind.h>

namespace kvtrove {

void bind_attention(nanobind::module_& m);

}  // namespace kvtrove
