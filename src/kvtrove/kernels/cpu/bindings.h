// Each file of bindings adds what it binds to the extension module.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace kvtrove {

// What Python passes as an address.
template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void bind_attention(nanobind::module_& m);  // attention_binding.cpp
void bind_between(nanobind::module_& m);    // between_binding.cpp
void bind_decoder(nanobind::module_& m);    // decoder_binding.cpp
void bind_linear(nanobind::module_& m);     // linear_binding.cpp
void bind_rows(nanobind::module_& m);       // rows_binding.cpp

}  // namespace kvtrove
