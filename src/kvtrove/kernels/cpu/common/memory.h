// Memory that a thread keeps between products.
#pragma once

#include "common/pages.h"

namespace kvtrove {

// Memory of the calling thread that is kept for the next call, in huge pages. Throws std::bad_alloc.
inline std::uint8_t* scratch(std::size_t bytes) {
    static thread_local Pages memory;
    static thread_local std::size_t size = 0;
    if (size < bytes) {
        size = 0, memory.reset();
        memory = take_pages(bytes), size = bytes;
    }
    return memory.get();
}

}  // namespace kvtrove
