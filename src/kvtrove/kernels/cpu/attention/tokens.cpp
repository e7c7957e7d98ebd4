// Tokens of the cache, read as numbers and moved as they are stored.

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "attention/attention.h"
#include "attention/place.h"
#include "attention/stored.h"
#include "common/threads.h"

namespace kvtrove::attention {

namespace {

std::size_t threads_of(int num_threads) { return num_threads > 0 ? num_threads : max_threads(); }

// `count` units of T that lie `stride` units apart in the cache, and one behind the other in `bytes`. out: from the cache.
template <class T>
void exchange(std::uint8_t* cache, std::ptrdiff_t stride, std::int64_t count, std::uint8_t* bytes, bool out) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint8_t* stored = cache + i * stride * static_cast<std::ptrdiff_t>(sizeof(T));
        if (out) std::memcpy(bytes + i * sizeof(T), stored, sizeof(T));
        else std::memcpy(stored, bytes + i * sizeof(T), sizeof(T));
    }
}

void exchange_run(std::uint8_t* cache, std::size_t size, std::uint8_t* bytes, bool out) {
    if (out) std::memcpy(bytes, cache, size);
    else std::memcpy(cache, bytes, size);
}

std::size_t token_bytes(const Side& side) {
    const std::size_t numbers = (side.scale.data ? side.groups() : 0) + (side.zero.data ? side.groups() : 0);
    return static_cast<std::size_t>(side.vector_bytes()) + 2 * numbers;
}

// The vector of a token, its scales and its zeros, one behind the other; or those of all tokens of the block that begins
// at `slot`, which lie together for one head, whatever their layout.
void exchange(const Layer& layer, const Side& side, bool keys, std::int64_t slot, int head, bool block, std::uint8_t* bytes,
              bool out) {
    const Place at = place(layer, side, slot, head, keys);
    const std::int64_t vector = side.vector_bytes(), tokens = block ? layer.block_size : 1;
    const std::int64_t unit = at.pack * static_cast<std::int64_t>(bytes_of(side.stored));
    const std::ptrdiff_t stride = at.stride / at.pack;
    if (block || stride == 1) exchange_run(at.data, tokens * vector, bytes, out);
    else if (unit == 1) exchange<std::uint8_t>(at.data, stride, vector, bytes, out);
    else if (unit == 2) exchange<std::uint16_t>(at.data, stride, vector / 2, bytes, out);
    else exchange<std::uint32_t>(at.data, stride, vector / 4, bytes, out);
    bytes += tokens * vector;
    for (const Plane* plane : {&side.scale, &side.zero}) {
        if (!plane->data) continue;
        auto* numbers = reinterpret_cast<std::uint8_t*>(numbers_of(layer, side, *plane, slot, head));
        const std::int64_t size = 2 * tokens * side.groups();
        if (block) exchange_run(numbers, size, bytes, out);
        else exchange<std::uint16_t>(numbers, layer.block_size, side.groups(), bytes, out);
        bytes += size;
    }
}

// Whether these are the slots of one block, in their order.
bool is_block(const std::int64_t* slots, std::int64_t size) {
    bool whole = slots[0] % size == 0;
    for (std::int64_t t = 1; t < size; ++t) whole = whole && slots[t] == slots[0] + t;
    return whole;
}

void require_by_token(const Layer& layer) {
    for (const Side* side : {&layer.k, &layer.v}) {
        if (side->channels || side->stored == Element::int2) throw std::invalid_argument("such codes belong to whole blocks");
    }
}

}  // namespace

void read(const Layer& layer, const Side& side, const std::int64_t* slots, std::int64_t count, float* to, int num_threads) {
    require_by_token(layer);
    parallel_ranges(layer.kv_heads * count, threads_of(num_threads), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            load_vector(layer, side, slots[i % count], static_cast<int>(i / count), &side == &layer.k, to + i * side.dim);
        }
    });
}

std::size_t moving_bytes(const Layer& layer, std::int64_t count) {
    return layer.kv_heads * count * (token_bytes(layer.k) + token_bytes(layer.v));
}

void move(const Layer& layer, const std::int64_t* from, const std::int64_t* to, std::int64_t count, std::uint8_t* scratch,
          int num_threads) {
    require_by_token(layer);
    const std::size_t of_key = token_bytes(layer.k), each = of_key + token_bytes(layer.v);
    const std::int64_t size = layer.block_size, parts = (count + size - 1) / size;  // of a head
    for (const bool out : {true, false}) {
        parallel_ranges(layer.kv_heads * parts, threads_of(num_threads), [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t part = begin; part < end; ++part) {
                const int head = static_cast<int>(part / parts);
                const std::int64_t first = part % parts * size, tokens = std::min(size, count - first);
                const std::int64_t *source = from + head * count + first, *target = to + first;
                const bool block = tokens == size && is_block(source, size) && is_block(target, size);
                const std::size_t keys = block ? size * of_key : of_key;
                std::uint8_t* bytes = scratch + (head * count + first) * each;
                for (std::int64_t t = 0; t < (block ? 1 : tokens); ++t, bytes += each) {
                    const std::int64_t slot = out ? source[t] : target[t];
                    exchange(layer, layer.k, true, slot, head, block, bytes, out);
                    exchange(layer, layer.v, false, slot, head, block, bytes + keys, out);
                }
            }
        });
    }
}

}  // namespace kvtrove::attention
