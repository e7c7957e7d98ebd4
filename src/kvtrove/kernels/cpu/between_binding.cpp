// Python's view of between.h: addresses that between.py has checked.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "between.h"
#include "bindings.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

void set_matrix(Matrix& matrix, const PackedWeights* weights, std::uintptr_t bias) {
    matrix = {weights, pointer<const float>(bias)};
}

}  // namespace

void bind_between(nb::module_& m) {
    nb::class_<Between>(m, "Between")
        .def("__init__",
             [](Between* self, const PackedWeights& o, std::uintptr_t o_bias, const PackedWeights& gate_up,
                std::uintptr_t gate_up_bias, const PackedWeights& down, std::uintptr_t down_bias,
                const PackedWeights* next, std::uintptr_t next_bias, std::uintptr_t norm, float eps, bool wide,
                std::uintptr_t next_norm, float next_eps, bool next_wide) {
                 new (self) Between();
                 set_matrix(self->o, &o, o_bias), set_matrix(self->gate_up, &gate_up, gate_up_bias);
                 set_matrix(self->down, &down, down_bias), set_matrix(self->next, next, next_bias);
                 self->norm = {pointer<const void>(norm), eps, wide};
                 self->next_norm = {pointer<const void>(next_norm), next_eps, next_wide};
                 self->check();
             },
             nb::arg("o"), nb::arg("o_bias"), nb::arg("gate_up"), nb::arg("gate_up_bias"), nb::arg("down"),
             nb::arg("down_bias"), nb::arg("next").none(), nb::arg("next_bias"), nb::arg("norm"), nb::arg("eps"),
             nb::arg("wide"), nb::arg("next_norm"), nb::arg("next_eps"), nb::arg("next_wide"),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 8>())
        .def("run",
             [](const Between& self, std::uintptr_t x, std::uintptr_t mixed, std::uintptr_t workspace,
                std::uintptr_t out, bool is_bf16, std::size_t rows) {
                 const kvtrove::Unlocked unlocked;
                 run(self, is_bf16 ? Float::bf16 : Float::f32, rows, pointer<std::uint8_t>(x),
                     pointer<const std::uint8_t>(mixed), pointer<std::uint8_t>(workspace), pointer<std::uint8_t>(out));
             },
             nb::arg("x"), nb::arg("mixed"), nb::arg("workspace"), nb::arg("out"), nb::arg("is_bf16"), nb::arg("rows"))
        .def("workspace", &Between::workspace, nb::arg("rows"))
        .def_prop_ro("outputs", &Between::outputs);
}

}  // namespace kvtrove
