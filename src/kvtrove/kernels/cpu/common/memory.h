// Memory that a thread keeps between calls.
#pragma once

#include "common/pages.h"

namespace kvtrove {

// What the calling thread keeps for the next call, in huge pages: a matrix whose every row begins in another small page
// takes twice as long to write. Use: one at a time. Throws std::bad_alloc.
template <class Use>
std::uint8_t* kept_memory(std::size_t bytes) {
    static thread_local Pages memory;
    static thread_local std::size_t size = 0;
    if (size < bytes) {
        size = 0, memory.reset();
        memory = take_pages(bytes), size = bytes;
    }
    return memory.get();
}

// Of a product.
inline std::uint8_t* scratch(std::size_t bytes) { return kept_memory<struct Scratch>(bytes); }

// Of a run of products and what lies between them.
inline std::uint8_t* workspace(std::size_t bytes) { return kept_memory<struct Workspace>(bytes); }

}  // namespace kvtrove
