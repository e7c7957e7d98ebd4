// Python's view of decoder.h: addresses that decoder.py has checked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>

#include "binding/attention.h"
#include "binding/bindings.h"
#include "common/memory.h"
#include "layers/decoder.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

struct BoundDecoder {
    BoundKernel& kernel;
    Decoder decoder;

    void add(const BoundLayer& layer, const Between& between, std::size_t group, std::size_t parts, std::size_t rope, bool stores,
             std::uintptr_t q_norm, float q_eps, bool q_wide, std::uintptr_t k_norm, float k_eps, bool k_wide) {
        if (parts == 0) throw std::invalid_argument("a layer has one part at least");
        decoder.add({&layer.layer, &between, {pointer<const void>(q_norm), q_eps, q_wide},
                     {pointer<const void>(k_norm), k_eps, k_wide}, group, rope, stores, parts});
    }

    void run(std::uintptr_t x, std::uintptr_t projected, std::uintptr_t out, bool is_bf16,
             const std::vector<const BoundBatch*>& batches, const std::vector<Angles>& angles) {
        if (decoder.layers.empty() || batches.size() < decoder.batches || angles.size() < decoder.ropes) {
            throw std::invalid_argument("there are no layers, or one of them names a batch or a rotation that the step does "
                                        "not have");
        }
        DecoderStep step{is_bf16 ? Float::bf16 : Float::f32, 0, {}, {}};
        for (const BoundBatch* batch : batches) step.batches.push_back(&batch->batch);
        for (const Angles& one : angles) step.ropes.push_back(rope_of(one));
        for (const DecoderLayer& layer : decoder.layers) {
            for (std::size_t part = 0; part < layer.parts; ++part) batches[layer.group + part]->check_for(*layer.attention);
            if (2 * step.ropes[layer.rope].half > layer.attention->k.dim) {
                throw std::invalid_argument("a rotation is wider than the heads of a layer that it turns");
            }
        }
        step.rows = static_cast<std::size_t>(step.batches.front()->tokens());
        const kvtrove::Unlocked unlocked;
        std::uint8_t* memory = workspace(decoder.workspace(step.rows) * bytes_of(step.type));
        kvtrove::run(decoder, step, {kernel.scratch, kernel.num_threads, kernel.isa}, pointer<std::uint8_t>(x),
                     pointer<std::uint8_t>(projected), memory, pointer<std::uint8_t>(out));
    }
};

}  // namespace

void bind_decoder(nb::module_& m) {
    nb::class_<BoundDecoder>(m, "Decoder")
        .def("__init__", [](BoundDecoder* self, BoundKernel& kernel) { new (self) BoundDecoder{kernel, {}}; },
             nb::arg("kernel"), nb::keep_alive<1, 2>())
        .def("add", &BoundDecoder::add, nb::arg("layer"), nb::arg("between"), nb::arg("group"), nb::arg("parts"), nb::arg("rope"),
             nb::arg("stores"), nb::arg("q_norm"), nb::arg("q_eps"), nb::arg("q_wide"), nb::arg("k_norm"), nb::arg("k_eps"),
             nb::arg("k_wide"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("run", &BoundDecoder::run, nb::arg("x"), nb::arg("projected"), nb::arg("out"), nb::arg("is_bf16"),
             nb::arg("batches"), nb::arg("angles"))
        .def_prop_ro("outputs", [](const BoundDecoder& self) { return self.decoder.outputs(); });
}

}  // namespace kvtrove
