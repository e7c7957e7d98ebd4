#include <cstdint>

#include "binding/bindings.h"
#include "common/crc32c.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

// Bytes of any object with the buffer protocol, held while it lives.
class Bytes {
  public:
    explicit Bytes(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { PyBuffer_Release(&view_); }
    const void* data() const { return view_.buf; }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }

  private:
    Py_buffer view_;
};

constexpr std::size_t kWorthUnlocking = 16 * 1024;  // bytes; less is done before another thread has the interpreter

std::uint32_t checksum(nb::handle data, std::uint32_t crc, bool by_tables) {
    const Bytes bytes(data);
    const auto compute = [&] {
        return by_tables ? crc32c_by_tables(crc, bytes.data(), bytes.size()) : crc32c(crc, bytes.data(), bytes.size());
    };
    if (bytes.size() < kWorthUnlocking) return compute();
    const Unlocked unlocked;
    return compute();
}

}  // namespace

void bind_crc32c(nb::module_& m) {
    m.def("crc32c", &checksum, nb::arg("data"), nb::arg("crc") = 0, nb::arg("by_tables") = false);
}

}  // namespace kvtrove
