// Each file of bindings adds what it binds to the extension module.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <cstdint>
#include <thread>

namespace kvtrove {

// What Python passes as an address.
template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Lets other threads of Python run while it lives. When the interpreter has ended meanwhile, as it does beside daemon
// threads, Python 3.11 to 3.13 end the thread that comes back by unwinding it, which no destructor outlives: such a thread
// waits for the end of the process instead, as it does from 3.14 on.
class Unlocked {
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
    ~Unlocked() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

  private:
    PyThreadState* state_;
};

void bind_attention(nanobind::module_& m);        // attention.cpp
void bind_crc32c(nanobind::module_& m);           // crc32c.cpp
void bind_decoder(nanobind::module_& m);          // decoder.cpp
void bind_linear(nanobind::module_& m);           // linear.cpp
void bind_norms(nanobind::module_& m);            // norms.cpp
void bind_post_attention(nanobind::module_& m);   // post_attention.cpp
void bind_states(nanobind::module_& m);           // states.cpp

}  // namespace kvtrove
