// Each file of bindings adds what it binds to the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace kvtrove {

void bind_linear(nanobind::module_& m);  // linear_binding.cpp

}  // namespace kvtrove
