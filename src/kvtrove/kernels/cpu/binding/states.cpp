// Python's view of states.h. Addresses are those of arrays that states.py has checked.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "binding/bindings.h"
#include "layers/states.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

using Address = std::uintptr_t;

StateStep step_of(Address starts, Address seats, std::size_t sequences) {
    return {pointer<std::int64_t>(starts), pointer<std::int64_t>(seats), sequences};
}

void convolve_of(Address x, bool is_bf16, std::size_t stride, std::size_t width, std::size_t kernel, Address weight,
                 Address bias, Address state, std::size_t seat_stride, Address y, bool silu, Address starts, Address seats,
                 std::size_t sequences) {
    const Unlocked unlocked;
    convolve({pointer<void>(x), is_bf16, stride, width, kernel, pointer<float>(weight), pointer<float>(bias),
              pointer<void>(state), seat_stride, pointer<float>(y), silu},
             step_of(starts, seats, sequences));
}

void delta_of(Address mixed, std::size_t key_heads, std::size_t value_heads, std::size_t k_dim, std::size_t v_dim,
              Address decay, Address dt, Address norm, float eps, float unit_eps, Address z, Address b, Address a,
              bool is_bf16, std::size_t stride, Address matrix, std::size_t seat_stride, Address out, Address starts,
              Address seats, std::size_t sequences) {
    const Unlocked unlocked;
    gated_delta({pointer<float>(mixed), key_heads, value_heads, k_dim, v_dim, pointer<float>(decay), pointer<float>(dt),
                 pointer<float>(norm), eps, unit_eps, pointer<void>(z), pointer<void>(b), pointer<void>(a), is_bf16,
                 stride, pointer<float>(matrix), seat_stride, pointer<void>(out)},
                step_of(starts, seats, sequences));
}

}  // namespace

void bind_states(nb::module_& m) {
    m.def("convolve", &convolve_of);
    m.def("gated_delta", &delta_of);
}

}  // namespace kvtrove
