// Attention over the blocks of a KV cache, and the storing of new K/V into them: what Python binds and what every
// instruction-set level implements.
//
//   positions of one sequence   0        512       1024      1536    1800
//   splits                      |   0    |    1    |    2    |  3  |        each a work item of its own, if that is
//   chunks of one split                  |512 |768 |                        needed to keep all threads busy
//   tiles of 16 tokens                   ||||||||||||
//
// Borders lie at fixed positions, and every sum runs in one order within chunk, split and sequence. So the result for a
// query depends on nothing but its own sequence: not on the batch, the chunking of prefill, or the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/isa.h"

namespace kvtrove::attention {

constexpr int kTile = 16;        // tokens that one product takes; blocks in tiled layout are multiples of it
constexpr int kChunk = 256;      // tokens whose scores are held at once
constexpr int kSplit = 512;      // tokens of a work item
constexpr int kMaxGroups = 16;  // of elements of a vector that have a scale of their own
constexpr int kMaxDim = 1024;    // largest vector; every one is a multiple of 8

enum class Element : std::uint8_t { float32, float16, bfloat16, int8, float8, int4, int2 };

// Of what stands in memory as a number of its own: codes of int4 and int2 lie in bytes.
inline std::size_t bytes_of(Element element) {
    return element == Element::float32 ? 4 : element >= Element::int8 ? 1 : 2;
}

// One plane of the arena: block b begins at data + b * block_stride bytes and is contiguous.
struct Plane {
    std::uint8_t* data = nullptr;
    std::ptrdiff_t block_stride = 0;
};

// Which positions the query at position p reads: those of [first(p), end(p)) and of [0, sinks) that lie before end(p).
struct Reach {
    std::int64_t sinks = 0;
    std::int64_t window = 0;  // 0: unlimited
    std::int64_t chunk = 0;   // 0: no chunks
    std::int64_t sealed = 0;  // 0, or a number of tokens: reads only what lies before its own run of as many
    std::int64_t begin = 0;   // reads nothing before it, sinks apart
    std::int64_t limit = 0;   // 0, or reads nothing from it on

    std::int64_t first(std::int64_t p) const {
        const std::int64_t from = chunk ? p / chunk * chunk : window && p >= window ? p - window + 1 : 0;
        return std::min(std::max(from, begin), end(p));
    }
    std::int64_t end(std::int64_t p) const {
        const std::int64_t to = sealed ? p / sealed * sealed : p + 1;
        return limit ? std::min(to, limit) : to;
    }
    bool operator==(const Reach& other) const {
        return sinks == other.sinks && window == other.window && chunk == other.chunk && sealed == other.sealed &&
               begin == other.begin && limit == other.limit;
    }
};

// Numbers in a byte.
inline int codes_of(Element element) { return element == Element::int4 ? 2 : element == Element::int2 ? 4 : 1; }

// Keys or values of a layer. Layouts inside a block, with pack = 1, 2 or 4 elements of 4, 2 or 1 bytes:
//   tiled  keys [kv_heads][block_size / 16][dim / pack][16][pack]   values [kv_heads][block_size / pack][dim][pack]
//   plain  keys, values [kv_heads][block_size][dim]
// A number of int8 or float8 (e4m3) is its scale times what is stored, one of int4 or int2 its zero plus its scale times the
// code. Both are float16 [kv_heads][dim / group][block_size], or, with `channels`, [kv_heads][dim] for all tokens of a block,
// which are then not stored here, but sealed. int4 and int2 lie as int8 of b = dim / 2 or dim / 4 bytes does: byte j holds the
// codes of elements j, j + b, ... from its lowest bits up.
struct Side {
    Plane data, scale, zero;
    Element stored = Element::float32;
    bool tiled = false, turned = false;  // turned: see turn.h
    bool channels = false;
    int dim = 0, group = 0;              // group: elements that share scale and zero; 0 for all
    int row = 0;            // of values that are the first elements of keys: elements of a key; 0 where they lie apart
    bool in_tiles = false;  // those keys lie in tiled layout

    int groups() const { return group ? dim / group : 1; }
    bool has_one_scale() const { return groups() == 1 && !channels; }  // for each vector
    std::int64_t vector_bytes() const { return static_cast<std::int64_t>(dim * bytes_of(stored)) / codes_of(stored); }
};

// Which blocks the query at position p reads, in place of all before its own (kv/selection): its own, and those that promise
// most. By the bounds of their keys: bfloat16 [kv_heads][2][k.dim], smallest and largest elements. Or by labels: bfloat16
// [kv_heads][num_channels][block_size], some elements of every key, `channels` [kv_heads][num_channels]. room: blocks beside
// the own one.
struct Selection {
    Plane bounds, labels;
    const std::int32_t* channels = nullptr;
    int num_channels = 0;
    std::int64_t least = 0, part = 0;  // room: `least`, or one of `part` blocks before it where that is more; part 0: never

    explicit operator bool() const { return bounds.data || labels.data; }
    std::int64_t room(std::int64_t older) const {
        return std::min(older, std::max(least, part ? (older + part - 1) / part : 0));
    }
};

// What never changes about a layer. Queries have the size of keys, results that of values.
struct Layer {
    Side k, v;
    std::int64_t num_blocks = 0;
    int num_heads = 0, kv_heads = 0, block_size = 0;
    float scale = 1, softcap = 0;          // softcap 0: none
    const float* sink_logits = nullptr;    // [num_heads], or none: a score each query has beside those of its keys, of value zero
    Reach reach;
    Selection select;                      // of a layer whose reach has no bounds; block_size is a multiple of kTile

    int group() const { return num_heads / kv_heads; }
};

// One step of one group of layers. table: [sequences][table_width]. slots: one per token. Both belong to the caller.
struct Batch {
    std::vector<std::int64_t> query_start, start;
    const std::int32_t* table = nullptr;
    std::int64_t table_width = 0;
    const std::int64_t* slots = nullptr;

    std::int64_t sequences() const { return static_cast<std::int64_t>(start.size()); }
    std::int64_t tokens() const { return query_start.back(); }
};

// [tokens][heads][dim], contiguous within a token. stride: bytes from token to token.
struct Rows {
    std::uint8_t* data = nullptr;
    std::ptrdiff_t stride = 0;
    Element element = Element::float32;
};

// How a step's tokens are turned (arXiv 2104.09864): cos, sin [tokens][half], contiguous. Elements d and d + half of a head
// form a pair; those from 2 * half on stay. Every operation is rounded to `element`, as torch rounds it.
struct Rope {
    const std::uint8_t* cos = nullptr;
    const std::uint8_t* sin = nullptr;
    int half = 0;
    Element element = Element::float32;
};

// Memory that calls reuse: after the largest step has been seen, nothing is allocated any more.
struct Scratch {
    std::vector<struct Tile> tiles;
    std::vector<struct Item> items;
    std::vector<float> memory;
    std::vector<std::uint64_t> kept;  // see Kept

    Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();
};

// Throws std::out_of_range when a query of `batch` reads a position whose block is not held (outside of the layer's
// num_blocks), or when a slot does not exist. Everything else here assumes that this passed.
void check(const Layer& layer, const Batch& batch);

// Writes k, v of every token of the batch into its slot. For int8 each (token, head) vector x becomes
// round(x / s), s = float16(max|x| / 127, rounded up). rope: turns k on the way.
void store(const Layer& layer, const Batch& batch, const Rows& k, const Rows& v, int num_threads,
           const Rope* rope = nullptr);

// Writes the summaries (Selection) of every block that the batch has filled, of keys as they are stored.
void summarise(const Layer& layer, const Batch& batch, int num_threads);

// to: [kv_heads][count][dim], the vectors of a side in these slots as numbers. Sides that are sealed are not read so.
void read(const Layer& layer, const Side& side, const std::int64_t* slots, std::int64_t count, float* to, int num_threads);

// Moves K and V as they are stored, codes and scales unchanged: of each kv head, from the slots from[kv_heads][count] to the
// slots to[count]. All are read before any is written; whole blocks that become whole blocks are copied as such. scratch:
// moving_bytes.
void move(const Layer& layer, const std::int64_t* from, const std::int64_t* to, std::int64_t count, std::uint8_t* scratch,
          int num_threads);
std::size_t moving_bytes(const Layer& layer, std::int64_t count);

// Turns x [tokens][heads][dim] in place.
void rotate(const Rows& x, std::int64_t tokens, int heads, int dim, const Rope& rope, int num_threads);

// Results over other keys, and the logarithms of their sums: [tokens][num_heads][v.dim], [tokens][num_heads].
struct Earlier {
    const float *out, *lse;
};

// out = softmax(cap(q.k * scale)) . v for every token, sink logits in the sum of the softmax. lse (optional):
// [tokens][num_heads], the logarithm of the sum of exponentials. earlier (optional): merged into both. A query that reads
// nothing gets 0, and minus infinity. num_threads: 0 takes max_threads().
void attend(const Layer& layer, const Batch& batch, const Rows& q, const Rows& out, float* lse, Scratch& scratch,
            int num_threads, Isa isa, const Earlier* earlier = nullptr);

// What a layer is given. keys, values: their data is null when another layer stores for it. rope: null when q and k come
// turned; else q is turned in place.
struct Inputs {
    Rows queries, keys, values;
    const Rope* rope = nullptr;
};

// `store`, `rotate` and `attend`, as far as they are asked for.
void run(const Layer& layer, const Batch& batch, const Inputs& inputs, const Rows& out, Scratch& scratch, int num_threads,
         Isa isa);

}  // namespace kvtrove::attention
