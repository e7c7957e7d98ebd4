// Memory in whole cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace kvtrove {

constexpr std::size_t kCacheLine = 64;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

using CacheLines = std::unique_ptr<std::uint8_t[], Free>;

// Whole cache lines. Throws std::bad_alloc.
inline CacheLines cache_lines(std::size_t bytes) {
    const std::size_t size = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    CacheLines memory(static_cast<std::uint8_t*>(std::aligned_alloc(kCacheLine, size)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

// Memory of the calling thread that is kept for the next call.
inline std::uint8_t* scratch(std::size_t bytes) {
    static thread_local CacheLines memory;
    static thread_local std::size_t size = 0;
    if (size < bytes) {
        size = 0, memory.reset();
        memory = cache_lines(bytes), size = bytes;
    }
    return memory.get();
}

}  // namespace kvtrove
