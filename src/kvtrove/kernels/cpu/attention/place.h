// Where single vectors lie in the blocks of a layer.
#pragma once

#include "attention/attention.h"

namespace kvtrove::attention {

// Where one (slot, kv head) vector lies: element d at data[d / pack * stride + d % pack].
struct Place {
    std::uint8_t* data;
    std::ptrdiff_t stride;
    int pack;
};

inline Place place(const Layer& layer, const Side& side, std::int64_t slot, int head, bool keys) {
    const std::int64_t block = slot / layer.block_size, at = slot % layer.block_size;
    const int bytes = static_cast<int>(bytes_of(side.stored)), pack = side.tiled ? 4 / bytes : 1;
    const std::int64_t dim = side.vector_bytes() / bytes, of_head = static_cast<std::int64_t>(head) * layer.block_size * dim;
    std::uint8_t* data = side.data.data + block * side.data.block_stride;
    if (!side.tiled) return {data + (of_head + at * dim) * bytes, 1, 1};
    if (keys) return {data + (of_head + at / kTile * kTile * dim + at % kTile * pack) * bytes, kTile * pack, pack};
    return {data + (of_head + at / pack * pack * dim + at % pack) * bytes, pack, 1};
}

// The first scale or zero of a vector in a plane of them; those of its other groups lie block_size apart.
inline std::uint16_t* numbers_of(const Layer& layer, const Side& side, const Plane& plane, std::int64_t slot, int head) {
    auto* block = plane.data + slot / layer.block_size * plane.block_stride;
    return reinterpret_cast<std::uint16_t*>(block) + head * side.groups() * layer.block_size + slot % layer.block_size;
}

}  // namespace kvtrove::attention
