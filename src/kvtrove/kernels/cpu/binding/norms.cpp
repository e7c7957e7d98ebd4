// Python's view of rows.h and draw.h. Called several times a layer, so arrays come as addresses that rows.py has checked: importing
// an array costs as much as a small row.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "binding/bindings.h"
#include "layers/draw.h"
#include "layers/norms.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

Float float_type(bool is_bf16) { return is_bf16 ? Float::bf16 : Float::f32; }

// What all norms are told, in this order.
Norm norm_of(std::uintptr_t weight, bool is_bf16, bool wide, std::size_t rows, std::size_t size, float eps) {
    return {float_type(is_bf16), rows, size, pointer<void>(weight), eps, wide};
}

void norm(std::uintptr_t x, std::uintptr_t y, std::uintptr_t weight, bool is_bf16, bool wide, std::size_t rows,
          std::size_t size, float eps) {
    const kvtrove::Unlocked unlocked;
    rms_norm(norm_of(weight, is_bf16, wide, rows, size, eps), pointer<void>(x), pointer<void>(y));
}

void add_norm(std::uintptr_t x, std::uintptr_t added, std::uintptr_t y, std::uintptr_t weight, bool is_bf16, bool wide,
              std::size_t rows, std::size_t size, float eps) {
    const kvtrove::Unlocked unlocked;
    add_rms_norm(norm_of(weight, is_bf16, wide, rows, size, eps), pointer<void>(x), pointer<void>(added), pointer<void>(y));
}

template <auto Gate>
void gate_and_mul(std::uintptr_t gate, std::uintptr_t up, std::uintptr_t y, bool is_bf16, std::size_t rows,
                  std::size_t size, std::ptrdiff_t stride) {
    const kvtrove::Unlocked unlocked;
    Gate(float_type(is_bf16), rows, size, stride, pointer<void>(gate), pointer<void>(up), pointer<void>(y));
}

void race_of(std::uintptr_t weights, std::size_t size, std::uintptr_t places, std::uintptr_t keys, std::size_t draws,
             std::size_t most, std::uintptr_t candidates, std::uintptr_t counts) {
    const kvtrove::Unlocked unlocked;
    race({pointer<float>(weights), pointer<std::int64_t>(places), pointer<std::uint32_t>(keys), draws, size}, most,
         pointer<std::int32_t>(candidates), pointer<std::int32_t>(counts));
}

void limit_to(std::uintptr_t scaled, std::uintptr_t weights, std::uintptr_t top_k, std::uintptr_t top_p, std::size_t rows,
              std::size_t size) {
    const kvtrove::Unlocked unlocked;
    limit({pointer<float>(scaled), pointer<float>(weights), pointer<std::int64_t>(top_k), pointer<double>(top_p), rows, size});
}

}  // namespace

void bind_norms(nb::module_& m) {
    m.def("rms_norm", &norm);
    m.def("add_rms_norm", &add_norm);
    m.def("silu_and_mul", &gate_and_mul<silu_and_mul>);
    m.def("gelu_tanh_and_mul", &gate_and_mul<gelu_tanh_and_mul>);
    m.def("race", &race_of);
    m.def("limit", &limit_to);
}

}  // namespace kvtrove
