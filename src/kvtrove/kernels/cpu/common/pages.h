// Memory of the kernels in huge pages: without them every few lines that stream by need another walk through page tables.
//
// One run of addresses is reserved for all; pages of 2 MiB get memory when the first byte of them is taken, and give it
// back with the last. Small blocks lie behind one another and share pages, so that all of them together waste one page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtrove {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = 2 << 20;

enum class HugePages {
    transparent,  // the system is asked for them (madvise), and takes small ones where it has none
    hugetlb,      // of the pool that the system's administrator set aside (/proc/sys/vm/nr_hugepages); else as above
    off           // small pages
};

class PageArena {
  public:
    // reserve: bytes of addresses that are asked for at a time, in whole huge pages.
    explicit PageArena(std::size_t reserve = std::size_t{64} << 30) : reserve_(reserve) {}
    PageArena(const PageArena&) = delete;
    PageArena& operator=(const PageArena&) = delete;

    // For pages that get memory from now on.
    void set_kind(HugePages kind);
    // Whole cache lines, aligned to them; what is in them is left open. Throws std::bad_alloc.
    std::uint8_t* take(std::size_t bytes);
    void give_back(std::uint8_t* at, std::size_t bytes);
    // Makes huge pages of what lies in small ones, as far as the system can: for memory that was written once.
    void collapse(const std::uint8_t* at, std::size_t bytes);

    // Addresses [first, second) of pages that have memory, ascending and not adjacent.
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> mapped();
    // Pages of the system's pool were wanted, and there were not enough.
    bool pool_too_small();

  private:
    void reserve(std::size_t bytes);
    void release(std::uintptr_t at, std::size_t bytes);  // to free_
    void use(std::uintptr_t at, std::size_t bytes);
    void unuse(std::uintptr_t at, std::size_t bytes);
    void map(std::uintptr_t at, std::size_t bytes);  // throws std::bad_alloc
    void unmap(std::uintptr_t page);

    std::mutex mutex_;
    std::size_t reserve_;
    HugePages kind_ = HugePages::transparent;
    bool pool_too_small_ = false;
    std::map<std::uintptr_t, std::size_t> free_;  // address -> bytes that are reserved and belong to nobody
    std::map<std::uintptr_t, std::size_t> used_;  // page -> bytes of it that belong to somebody
};

// The one that weights and scratch memory come from. It lives as long as the process.
PageArena& page_arena();

struct GiveBack {
    std::size_t bytes = 0;
    void operator()(std::uint8_t* at) const { page_arena().give_back(at, bytes); }
};

using Pages = std::unique_ptr<std::uint8_t[], GiveBack>;

// Throws std::bad_alloc.
inline Pages take_pages(std::size_t bytes) { return {page_arena().take(bytes), GiveBack{bytes}}; }

}  // namespace kvtrove
