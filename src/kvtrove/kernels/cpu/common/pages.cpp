#include "common/pages.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kvtrove {

namespace {

std::size_t whole(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }
std::uintptr_t page_of(std::uintptr_t at) { return at / kHugePage * kHugePage; }

#if defined(__linux__)
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;

void* address(std::uintptr_t at) { return reinterpret_cast<void*>(at); }

bool map_at(std::uintptr_t at, std::size_t bytes, int protection, int flags) {
    return mmap(address(at), bytes, protection, kAnonymous | MAP_FIXED | flags, -1, 0) != MAP_FAILED;
}
#endif

}  // namespace

void PageArena::set_kind(HugePages kind) {
    const std::lock_guard lock(mutex_);
    kind_ = kind;
}

std::uint8_t* PageArena::take(std::size_t bytes) {
    const std::size_t size = whole(std::max<std::size_t>(bytes, 1), kCacheLine);
    if (size < bytes) throw std::bad_alloc();
    const std::lock_guard lock(mutex_);
    const auto fits = [size](const auto& range) { return range.second >= size; };
    auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found == free_.end()) {
        reserve(size);
        found = std::find_if(free_.begin(), free_.end(), fits);
    }
    const auto [at, room] = *found;
    use(at, size);
    free_.erase(found);
    if (room > size) free_.emplace(at + size, room - size);
    return reinterpret_cast<std::uint8_t*>(at);
}

void PageArena::give_back(std::uint8_t* memory, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto at = reinterpret_cast<std::uintptr_t>(memory);
    const std::size_t size = whole(std::max<std::size_t>(bytes, 1), kCacheLine);
    unuse(at, size);
    release(at, size);
}

void PageArena::release(std::uintptr_t at, std::size_t bytes) {
    auto next = free_.lower_bound(at);
    if (next != free_.end() && at + bytes == next->first) {
        bytes += next->second;
        next = free_.erase(next);
    }
    if (next != free_.begin()) {
        auto before = std::prev(next);
        if (before->first + before->second == at) {
            before->second += bytes;
            return;
        }
    }
    free_.emplace(at, bytes);
}

// Counts the bytes into their pages. Runs of pages that were empty get memory; when there is none, nothing has happened.
void PageArena::use(std::uintptr_t at, std::size_t bytes) {
    const std::uintptr_t end = at + bytes;
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> empty;
    for (std::uintptr_t page = page_of(at); page < end; page += kHugePage) {
        std::size_t& used = used_[page];
        if (!used && !empty.empty() && empty.back().second == page) {
            empty.back().second += kHugePage;
        } else if (!used) {
            empty.emplace_back(page, page + kHugePage);
        }
        used += std::min(end, page + kHugePage) - std::max(at, page);
    }
    try {
        for (const auto& [first, last] : empty) map(first, last - first);
    } catch (const std::bad_alloc&) {
        unuse(at, bytes);
        throw;
    }
}

// Takes the bytes out of their pages again; those that are empty then lose their memory.
void PageArena::unuse(std::uintptr_t at, std::size_t bytes) {
    const std::uintptr_t end = at + bytes;
    for (std::uintptr_t page = page_of(at); page < end; page += kHugePage) {
        const auto entry = used_.find(page);
        entry->second -= std::min(end, page + kHugePage) - std::max(at, page);
        if (entry->second) continue;
        used_.erase(entry);
        unmap(page);
    }
}

std::vector<std::pair<std::uintptr_t, std::uintptr_t>> PageArena::mapped() {
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> runs;
    for (const auto& [page, bytes] : used_) {
        if (!runs.empty() && runs.back().second == page) {
            runs.back().second += kHugePage;
        } else {
            runs.emplace_back(page, page + kHugePage);
        }
    }
    return runs;
}

bool PageArena::pool_too_small() {
    const std::lock_guard lock(mutex_);
    return pool_too_small_;
}

#if defined(__linux__)

void PageArena::reserve(std::size_t bytes) {
    const std::size_t least = whole(bytes, kHugePage) + kHugePage;
    for (std::size_t size = std::max(least, reserve_); size >= least; size = size > least ? std::max(least, size / 2) : 0) {
        void* memory = mmap(nullptr, size, PROT_NONE, kAnonymous | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) continue;  // a limit on addresses (ulimit -v)
        const auto at = reinterpret_cast<std::uintptr_t>(memory), first = whole(at, kHugePage);
        return release(first, page_of(at + size) - first);
    }
    throw std::bad_alloc();
}

void PageArena::map(std::uintptr_t at, std::size_t bytes) {
    if (kind_ == HugePages::hugetlb) {
        if (map_at(at, bytes, PROT_READ | PROT_WRITE, MAP_HUGETLB | 21 << MAP_HUGE_SHIFT)) return;
        pool_too_small_ = true;
    }
    if (!map_at(at, bytes, PROT_READ | PROT_WRITE, 0)) throw std::bad_alloc();
    madvise(address(at), bytes, kind_ == HugePages::off ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

void PageArena::unmap(std::uintptr_t page) { map_at(page, kHugePage, PROT_NONE, MAP_NORESERVE); }

void PageArena::collapse(const std::uint8_t* memory, std::size_t bytes) {
#if !defined(MADV_COLLAPSE)
    constexpr int MADV_COLLAPSE = 25;  // Linux 6.1; others refuse it
#endif
    if (kind_ == HugePages::off) return;
    const auto at = page_of(reinterpret_cast<std::uintptr_t>(memory));
    const auto end = whole(reinterpret_cast<std::uintptr_t>(memory) + bytes, kHugePage);
    madvise(address(at), end - at, MADV_COLLAPSE);
}

#else

void PageArena::reserve(std::size_t bytes) {
    const std::size_t size = whole(bytes, kHugePage);
    void* memory = std::aligned_alloc(kHugePage, size);
    if (!memory) throw std::bad_alloc();
    release(reinterpret_cast<std::uintptr_t>(memory), size);
}

void PageArena::map(std::uintptr_t, std::size_t) {}
void PageArena::unmap(std::uintptr_t) {}
void PageArena::collapse(const std::uint8_t*, std::size_t) {}

#endif

PageArena& page_arena() {
    static PageArena* const arena = new PageArena();  // never destroyed: threads give memory back as late as they end
    return *arena;
}

}  // namespace kvtrove
