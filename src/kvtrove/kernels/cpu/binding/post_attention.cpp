// Python's view of between.h: addresses that between.py has checked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>

#include "binding/bindings.h"
#include "common/memory.h"
#include "layers/post_attention.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

// Address of the weight (0: there is none), eps, and whether it is wide.
using NormArgs = std::tuple<std::uintptr_t, float, bool>;

NormWeight norm_of(const NormArgs& norm) {
    return {pointer<const void>(std::get<0>(norm)), std::get<1>(norm), std::get<2>(norm)};
}

void set_matrix(Matrix& matrix, const PackedWeights* weights, std::uintptr_t bias) {
    matrix = {weights, pointer<const float>(bias)};
}

}  // namespace

void bind_post_attention(nb::module_& m) {
    nb::class_<Between>(m, "Between")
        .def("__init__",
             [](Between* self, const PackedWeights& o, std::uintptr_t o_bias, const PackedWeights* gate_up,
                std::uintptr_t gate_up_bias, const PackedWeights* down, std::uintptr_t down_bias,
                const PackedWeights* next, std::uintptr_t next_bias, const NormArgs& norm, const NormArgs& next_norm,
                const NormArgs& o_norm, const NormArgs& down_norm, bool gelu) {
                 new (self) Between();
                 set_matrix(self->o, &o, o_bias), set_matrix(self->gate_up, gate_up, gate_up_bias);
                 set_matrix(self->down, down, down_bias), set_matrix(self->next, next, next_bias);
                 self->norm = norm_of(norm), self->next_norm = norm_of(next_norm);
                 self->o_norm = norm_of(o_norm), self->down_norm = norm_of(down_norm), self->gelu = gelu;
                 self->check();
             },
             nb::arg("o"), nb::arg("o_bias"), nb::arg("gate_up").none(), nb::arg("gate_up_bias"),
             nb::arg("down").none(), nb::arg("down_bias"), nb::arg("next").none(), nb::arg("next_bias"), nb::arg("norm"),
             nb::arg("next_norm"), nb::arg("o_norm"), nb::arg("down_norm"), nb::arg("gelu"),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 8>())
        .def("run",
             [](const Between& self, std::uintptr_t x, std::uintptr_t mixed, std::uintptr_t out,
                bool is_bf16, std::size_t rows) {
                 const kvtrove::Unlocked unlocked;
                 const Float type = is_bf16 ? Float::bf16 : Float::f32;
                 run(self, type, rows, pointer<std::uint8_t>(x), pointer<const std::uint8_t>(mixed),
                     workspace(self.workspace(rows) * bytes_of(type)), pointer<std::uint8_t>(out));
             },
             nb::arg("x"), nb::arg("mixed"), nb::arg("out"), nb::arg("is_bf16"), nb::arg("rows"))
        .def_prop_ro("outputs", &Between::outputs);
}

}  // namespace kvtrove
