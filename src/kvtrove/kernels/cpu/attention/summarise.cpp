// What blocks say of their keys, for queries that choose among them (Selection).

#include <algorithm>

#include "attention/attention.h"
#include "attention/stored.h"
#include "common/half.h"
#include "common/threads.h"

namespace kvtrove::attention {

namespace {

// The least bfloat16 that is not below x: its upper half, which for positive numbers may have to grow.
std::uint16_t rounded_up(float x) {
    const std::uint32_t bits = bits_of_float(x);
    return static_cast<std::uint16_t>((bits >> 31 ? bits : bits + 0xFFFF) >> 16);
}

void bound(const Layer& layer, std::int64_t block, int head) {
    const int dim = layer.k.dim;
    float key[kMaxDim], low[kMaxDim], high[kMaxDim];
    for (int i = 0; i < layer.block_size; ++i) {
        load_vector(layer, layer.k, block * layer.block_size + i, head, true, key);
        for (int d = 0; d < dim; ++d) {
            low[d] = i ? std::min(low[d], key[d]) : key[d];
            high[d] = i ? std::max(high[d], key[d]) : key[d];
        }
    }
    const Plane& plane = layer.select.bounds;
    auto* to = reinterpret_cast<std::uint16_t*>(plane.data + block * plane.block_stride) + head * 2 * dim;
    for (int d = 0; d < dim; ++d) to[d] = rounded_up(-low[d]) ^ 0x8000, to[dim + d] = rounded_up(high[d]);
}

void label(const Layer& layer, std::int64_t block, int head) {
    const Selection& select = layer.select;
    const std::int32_t* channels = select.channels + head * select.num_channels;
    auto* to = reinterpret_cast<std::uint16_t*>(select.labels.data + block * select.labels.block_stride) +
               std::ptrdiff_t{head} * select.num_channels * layer.block_size;
    float key[kMaxDim];
    for (int i = 0; i < layer.block_size; ++i) {
        load_vector(layer, layer.k, block * layer.block_size + i, head, true, key);
        for (int c = 0; c < select.num_channels; ++c) to[c * layer.block_size + i] = bfloat16_of_float(key[channels[c]]);
    }
}

}  // namespace

void summarise(const Layer& layer, const Batch& batch, int num_threads) {
    const std::int64_t size = layer.block_size, heads = layer.kv_heads;
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
        const std::int64_t start = batch.start[s], end = start + batch.query_start[s + 1] - batch.query_start[s];
        const std::int64_t first = start / size, parts = (end / size - first) * heads;
        const std::int32_t* blocks = batch.table + s * batch.table_width + first;
        const std::size_t threads = parts == 0 ? 1 : num_threads > 0 ? num_threads : max_threads();
        parallel_ranges(parts, threads, [&](std::int64_t begin, std::int64_t after) {
            const auto write = layer.select.labels.data ? label : bound;
            for (std::int64_t i = begin; i < after; ++i) write(layer, blocks[i / heads], static_cast<int>(i % heads));
        });
    }
}

}  // namespace kvtrove::attention
