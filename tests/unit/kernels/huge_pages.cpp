// Memory in huge pages: alignment, sharing of pages, reuse, exhaustion, systems that refuse. Built with sanitizers by
// test_pages.py. Prints what is wrong, or "all right".
#include "common/pages.h"

#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <vector>

using namespace kvtrove;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    ++failures;
    std::puts(what);
}

std::size_t mapped(PageArena& arena) {
    std::size_t bytes = 0;
    for (const auto& [first, last] : arena.mapped()) bytes += last - first;
    return bytes;
}

struct Block {
    std::uint8_t* at;
    std::size_t bytes;
    std::uint8_t value;
};

// Blocks of all sizes come and go; none overlaps another one, and in the end nothing keeps memory.
void check_reuse(HugePages kind) {
    PageArena arena(std::size_t{1} << 30);
    arena.set_kind(kind);
    std::mt19937 random(1);
    std::vector<Block> blocks;
    std::size_t live = 0;
    for (int round = 0; round < 400; ++round) {
        if (blocks.size() > 20 || (!blocks.empty() && random() % 3 == 0)) {
            const std::size_t which = random() % blocks.size();
            const Block block = blocks[which];
            for (std::size_t i = 0; i < block.bytes; i += 61) expect(block.at[i] == block.value, "a block changed");
            arena.give_back(block.at, block.bytes);
            live -= block.bytes;
            blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(which));
        } else {
            const std::size_t bytes = random() % 2 ? random() % 5000 + 1 : random() % (5 << 20) + 1;
            const Block block{arena.take(bytes), bytes, static_cast<std::uint8_t>(random())};
            expect(reinterpret_cast<std::uintptr_t>(block.at) % kCacheLine == 0, "not aligned");
            std::memset(block.at, block.value, bytes);
            arena.collapse(block.at, bytes);
            blocks.push_back(block), live += bytes;
        }
        expect(mapped(arena) >= live, "a block without memory");
    }
    for (const Block& block : blocks) arena.give_back(block.at, block.bytes);
    expect(mapped(arena) == 0, "pages stay behind");
}

// 100 blocks of a quarter page take 25 pages, not 100; the first page of an arena begins where a huge page may.
void check_sharing() {
    PageArena arena;
    std::vector<std::uint8_t*> blocks;
    for (int i = 0; i < 100; ++i) blocks.push_back(arena.take(kHugePage / 4));
    expect(mapped(arena) == 25 * kHugePage, "blocks do not share pages");
    expect(reinterpret_cast<std::uintptr_t>(blocks[0]) % kHugePage == 0, "not where a huge page begins");
    for (int i = 0; i < 100; ++i) arena.give_back(blocks[static_cast<std::size_t>(i)], kHugePage / 4);
    expect(arena.take(25 * kHugePage) == blocks[0], "what came back is not used again");
}

void check_exhaustion() {
    PageArena arena(kHugePage);
    std::uint8_t* small = arena.take(100);
    small[0] = 7;
    for (const std::size_t bytes : {std::size_t{1} << 60, ~std::size_t{0}}) {
        try {
            arena.take(bytes);
            expect(false, "more than any machine has");
        } catch (const std::bad_alloc&) {
        }
    }
    expect(small[0] == 7 && mapped(arena) == kHugePage, "a refusal changed something");
    small[0] = 8, arena.take(3 * kHugePage)[0] = 1;
    expect(small[0] == 8, "nothing works after a refusal");
}

}  // namespace

int main() {
    for (const HugePages kind : {HugePages::transparent, HugePages::off, HugePages::hugetlb}) check_reuse(kind);
    check_sharing();
    check_exhaustion();
    if (!failures) std::puts("all right");
    return failures != 0;
}
