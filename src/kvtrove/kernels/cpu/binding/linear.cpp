// Python's view of linear.h.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "binding/bindings.h"
#include "common/pages.h"
#include "common/peak.h"
#include "linear/linear.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

using Input = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
Float float_type(const Input& array) {
    const auto type = array.dtype();
    if (type == nb::dtype<float>()) return Float::f32;
    if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16) return Float::bf16;
    throw nb::type_error("source must be float32 or bfloat16");
}

PackedWeights make(std::size_t outputs, std::size_t inputs, std::string_view kind, std::string_view isa) {
    using Kind = PackedWeights::Kind;
    constexpr std::pair<std::string_view, Kind> kKinds[] = {
        {"bf16", Kind::bf16}, {"int8", Kind::int8}, {"int4", Kind::int4}, {"int4_f32", Kind::int4_f32},
        {"int8_groups", Kind::int8_groups}, {"int8_groups_f32", Kind::int8_groups_f32},
        {"fp4", Kind::fp4}, {"int4_symmetric", Kind::int4_symmetric}};
    for (const auto& [name, stored] : kKinds) {
        if (kind == name) return {outputs, inputs, stored, choose_isa(isa)};
    }
    throw std::invalid_argument("kind: '" + std::string(kind) + "' is not one of bf16, int8, int4, int4_f32, int8_groups, int8_groups_f32, fp4, int4_symmetric");
}

void fill(PackedWeights& weights, std::size_t first_output, const Input& source) {
    const FloatMatrix matrix{source.data(), float_type(source), source.shape(0), source.shape(1)};
    const kvtrove::Unlocked unlocked;
    weights.fill(first_output, matrix);
}

using Numbers = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Lines = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// linear.py has compared the shapes.
void fill_groups(PackedWeights& weights, std::size_t first_output, const Numbers& numbers, const Lines& scales,
                 const Lines& minima) {
    const kvtrove::Unlocked unlocked;
    weights.fill_groups(first_output, numbers.shape(0), numbers.data(), scales.data(), minima.data());
}

// Called for every layer of every step, so arrays come as addresses that linear.py has checked: importing an array costs
// as much as a small product.
template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void multiply(const PackedWeights& weights, std::uintptr_t x, std::uintptr_t y, bool is_bf16, std::size_t rows,
              std::uintptr_t bias) {
    const kvtrove::Unlocked unlocked;
    weights.multiply(pointer<const void>(x), pointer<void>(y), is_bf16 ? Float::bf16 : Float::f32, rows,
                     pointer<const float>(bias));
}

void multiply_heads(const PackedWeights& weights, std::uintptr_t x, std::uintptr_t y, bool is_bf16, std::size_t rows,
                    std::size_t heads, std::size_t each) {
    const kvtrove::Unlocked unlocked;
    weights.multiply_heads(pointer<const void>(x), pointer<void>(y), is_bf16 ? Float::bf16 : Float::f32, rows, heads, each);
}

void gather(const PackedWeights& weights, std::uintptr_t ids, std::size_t count, std::uintptr_t y, bool is_bf16) {
    const kvtrove::Unlocked unlocked;
    weights.gather(pointer<const std::int64_t>(ids), count, pointer<void>(y), is_bf16 ? Float::bf16 : Float::f32);
}

void set_huge_pages(std::string_view kind) {
    if (kind != "auto" && kind != "hugetlb" && kind != "off") {
        throw std::invalid_argument("huge_pages: '" + std::string(kind) + "' is not one of auto, hugetlb, off");
    }
    page_arena().set_kind(kind == "auto"      ? HugePages::transparent
                          : kind == "hugetlb" ? HugePages::hugetlb
                                              : HugePages::off);
}

}  // namespace

void bind_linear(nb::module_& m) {
    nb::class_<PackedWeights>(m, "PackedWeights")
        .def("__init__",
             [](PackedWeights* self, std::size_t outputs, std::size_t inputs, std::string_view kind,
                std::string_view isa) { new (self) PackedWeights(make(outputs, inputs, kind, isa)); },
             nb::arg("outputs"), nb::arg("inputs"), nb::arg("kind"), nb::arg("isa"))
        .def("fill", &fill, nb::arg("first_output"), nb::arg("source").noconvert())
        .def("fill_groups", &fill_groups, nb::arg("first_output"), nb::arg("numbers").noconvert(),
             nb::arg("scales").noconvert(), nb::arg("minima").noconvert())
        .def("multiply", &multiply, nb::arg("x"), nb::arg("y"), nb::arg("is_bf16"), nb::arg("rows"), nb::arg("bias"))
        .def("multiply_heads", &multiply_heads, nb::arg("x"), nb::arg("y"), nb::arg("is_bf16"), nb::arg("rows"),
             nb::arg("heads"), nb::arg("each"))
        .def_prop_ro("width", &PackedWeights::width)
        .def("gather", &gather, nb::arg("ids"), nb::arg("count"), nb::arg("y"), nb::arg("is_bf16"))
        .def_prop_ro("nbytes", &PackedWeights::nbytes);
    m.def("set_huge_pages", &set_huge_pages, nb::arg("kind"));
    m.def("page_ranges", [] { return page_arena().mapped(); });
    m.def("run_at_peak",
          [](std::string_view isa, std::size_t rounds) {
              const Isa level = choose_isa(isa);
              const nb::gil_scoped_release unlocked;
              return run_at_peak(level, rounds);
          },
          nb::arg("isa"), nb::arg("rounds"));
}

}  // namespace kvtrove
