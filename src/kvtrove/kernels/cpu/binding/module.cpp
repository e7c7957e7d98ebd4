// Python's view of the CPU kernels: arrays arrive as raw pointers through DLPack or the buffer protocol, so numpy arrays
// and torch tensors work alike and nothing depends on torch's ABI.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <stdexcept>
#include <string>
#include <string_view>

#include "binding/bindings.h"
#include "common/copy_rows.h"
#include "common/isa.h"
#include "common/threads.h"

namespace nb = nanobind;

namespace {

using Arena = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pairs = nb::ndarray<const std::int32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
static_assert(sizeof(kvtrove::RowPair) == 2 * sizeof(std::int32_t));

void copy_rows(const Arena& arena, const Pairs& pairs, int num_threads) {
    if (num_threads < 0) {
        throw std::invalid_argument("num_threads: " + std::to_string(num_threads) + " must be at least 0");
    }
    auto* rows = arena.data();
    const auto* list = reinterpret_cast<const kvtrove::RowPair*>(pairs.data());
    const kvtrove::Unlocked unlocked;
    kvtrove::copy_rows(rows, arena.shape(0), arena.shape(1), list, pairs.shape(0), num_threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
    nb::set_leak_warnings(false);  // a daemon thread may hold weights when the process ends
    m.def("copy_rows", &copy_rows, nb::arg("arena").noconvert(), nb::arg("pairs").noconvert(),
          nb::arg("num_threads") = 0);
    m.def("isa", [](std::string_view wanted) { return std::string(kvtrove::name(kvtrove::choose_isa(wanted))); },
          nb::arg("wanted") = "auto");
    m.def("threads", &kvtrove::max_threads);
    m.def("set_threads", &kvtrove::set_max_threads, nb::arg("threads"));
    kvtrove::bind_crc32c(m);
    kvtrove::bind_linear(m);
    kvtrove::bind_norms(m);
    kvtrove::bind_states(m);
    kvtrove::bind_post_attention(m);
    kvtrove::bind_attention(m);
    kvtrove::bind_decoder(m);
}
