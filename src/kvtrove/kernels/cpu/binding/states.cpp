// Python's view of states.h. Addresses are those of arrays that states.py has checked.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "binding/bindings.h"
#include "layers/states.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

using Address = std::uintptr_t;

Taps taps_of(Address weight, Address bias, std::size_t width, std::size_t kernel, bool silu) {
    return {pointer<float>(weight), pointer<float>(bias), width, kernel, silu};
}

StateStep step_of(Address starts, Address seats, std::size_t sequences) {
    return {pointer<std::int64_t>(starts), pointer<std::int64_t>(seats), sequences};
}

void convolve_of(const Taps& taps, Address x, bool is_bf16, std::size_t stride, Address state, std::size_t seat_stride,
                 Address y, Address starts, Address seats, std::size_t sequences) {
    const Mixed mixed{pointer<void>(x), is_bf16, stride, pointer<void>(state), seat_stride, nullptr, 0, nullptr};
    const Unlocked unlocked;
    convolve(taps, mixed, pointer<float>(y), step_of(starts, seats, sequences));
}

Mixed mixed_of(Address x, bool is_bf16, std::size_t stride, Address conv, std::size_t conv_stride, Address matrix,
               std::size_t matrix_stride, Address out) {
    return {pointer<void>(x), is_bf16, stride, pointer<void>(conv), conv_stride, pointer<float>(matrix), matrix_stride,
            pointer<void>(out)};
}

}  // namespace

void bind_states(nb::module_& m) {
    nb::class_<Taps>(m, "Taps").def("__init__", [](Taps* self, Address weight, Address bias, std::size_t width,
                                                   std::size_t kernel, bool silu) {
        new (self) Taps(taps_of(weight, bias, width, kernel, silu));
    });
    m.def("convolve", &convolve_of);
    nb::class_<Delta>(m, "Delta")
        .def("__init__", [](Delta* self, const Taps& taps, std::size_t key_heads, std::size_t value_heads, std::size_t k_dim,
                            std::size_t v_dim, Address decay, Address dt, Address norm, float eps, float unit_eps) {
            new (self) Delta{taps, key_heads, value_heads, k_dim, v_dim, pointer<float>(decay), pointer<float>(dt),
                             pointer<float>(norm), eps, unit_eps};
        })
        .def("mix", [](const Delta& delta, Address x, bool is_bf16, std::size_t stride, Address conv, std::size_t conv_stride,
                       Address matrix, std::size_t matrix_stride, Address out, Address starts, Address seats,
                       std::size_t sequences) {
            const Unlocked unlocked;
            mix(delta, mixed_of(x, is_bf16, stride, conv, conv_stride, matrix, matrix_stride, out),
                step_of(starts, seats, sequences));
        });
    nb::class_<Mamba>(m, "Mamba")
        .def("__init__", [](Mamba* self, const Taps& taps, std::size_t heads, std::size_t head_dim, std::size_t state,
                            std::size_t groups, Address decay, Address skip, Address dt, Address norm, float eps,
                            float shortest, float longest) {
            new (self) Mamba{taps, heads, head_dim, state, groups, pointer<float>(decay), pointer<float>(skip),
                             pointer<float>(dt), pointer<float>(norm), eps, shortest, longest};
        })
        .def("mix", [](const Mamba& mamba, Address x, bool is_bf16, std::size_t stride, Address conv, std::size_t conv_stride,
                       Address matrix, std::size_t matrix_stride, Address out, Address starts, Address seats,
                       std::size_t sequences, Address workspace) {
            const Unlocked unlocked;
            mix(mamba, mixed_of(x, is_bf16, stride, conv, conv_stride, matrix, matrix_stride, out),
                step_of(starts, seats, sequences), pointer<float>(workspace));
        });
}

}  // namespace kvtrove
