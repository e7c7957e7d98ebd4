// Tokens of the cache, read as numbers and moved as they are stored.

#include <cstring>
#include <stdexcept>

#include "attention/attention.h"
#include "attention/place.h"
#include "attention/stored.h"
#include "common/threads.h"

namespace kvtrove::attention {

namespace {

std::size_t threads_of(int num_threads) { return num_threads > 0 ? num_threads : max_threads(); }

// A vector and its scales and zeros, one after the other. out: from the cache into bytes, else back.
template <class T>
void exchange(const Place& at, std::int64_t elements, std::uint8_t* bytes, bool out) {
    auto* data = reinterpret_cast<T*>(at.data);
    for (std::int64_t d = 0; d < elements; ++d) {
        T& stored = data[d / at.pack * at.stride + d % at.pack];
        if (out) std::memcpy(bytes + d * sizeof(T), &stored, sizeof(T));
        else std::memcpy(&stored, bytes + d * sizeof(T), sizeof(T));
    }
}

std::size_t token_bytes(const Side& side) {
    const std::size_t numbers = (side.scale.data ? side.groups() : 0) + (side.zero.data ? side.groups() : 0);
    return static_cast<std::size_t>(side.vector_bytes()) + 2 * numbers;
}

void exchange(const Layer& layer, const Side& side, bool keys, std::int64_t slot, int head, std::uint8_t* bytes, bool out) {
    const Place at = place(layer, side, slot, head, keys);
    const std::size_t size = bytes_of(side.stored);
    const std::int64_t elements = side.vector_bytes() / static_cast<std::int64_t>(size);
    if (size == 1) exchange<std::uint8_t>(at, elements, bytes, out);
    else if (size == 2) exchange<std::uint16_t>(at, elements, bytes, out);
    else exchange<std::uint32_t>(at, elements, bytes, out);
    bytes += side.vector_bytes();
    for (const Plane* plane : {&side.scale, &side.zero}) {
        if (!plane->data) continue;
        const Place numbers{reinterpret_cast<std::uint8_t*>(numbers_of(layer, side, *plane, slot, head)), layer.block_size, 1};
        exchange<std::uint16_t>(numbers, side.groups(), bytes, out);
        bytes += 2 * side.groups();
    }
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
    for (const bool out : {true, false}) {
        parallel_ranges(layer.kv_heads * count, threads_of(num_threads), [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t slot = out ? from[i] : to[i % count];
                const int head = static_cast<int>(i / count);
                exchange(layer, layer.k, true, slot, head, scratch + i * each, out);
                exchange(layer, layer.v, false, slot, head, scratch + i * each + of_key, out);
            }
        });
    }
}

}  // namespace kvtrove::attention
