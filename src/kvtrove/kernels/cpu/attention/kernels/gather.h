// Tiles of K and V as the product wants them. In tiled layout that is how they lie in the block; a plain layout is
// copied token by token. Included by each level inside its namespace, after vector.h.

// Sixteen tokens of one kv head. live: bit j says that some row reads token begin + j; what is not live may hold
// anything, NaN included. masked: some row does not read all of them.
struct Slot {
    std::int64_t begin;
    std::uint32_t live;
    bool masked;
};

constexpr std::uint32_t kAllLive = (1u << kTile) - 1;

constexpr std::int64_t kScaleBytes = 2;  // of a token

// A position: its block, and its token among all (kv_head, token) of that.
struct Spot {
    std::int64_t block, token;

    const std::uint8_t* in(const Plane& plane) const { return plane.data + block * plane.block_stride; }
};

struct Blocks {
    const Layer& layer;
    const std::int32_t* table;  // of one sequence
    int kv_head;

    Spot spot(std::int64_t position) const {
        const std::int64_t size = layer.block_size, block = position / size;
        return {table[block], kv_head * size + position - block * size};
    }
};

// put(d, element) for elements of a token of a plain side, or of keys whose first elements it is.
template <class Stored, class Put>
INLINE void each_element(const Blocks& blocks, const Side& side, std::int64_t position, const Put& put) {
    constexpr int pack = 4 / static_cast<int>(sizeof(Stored));
    const Spot spot = blocks.spot(position);
    const auto* block = reinterpret_cast<const Stored*>(spot.in(side.data));
    const std::int64_t row = side.row ? side.row : side.dim;
    if (!side.in_tiles) {
        for (int d = 0; d < side.dim; ++d) put(d, block[spot.token * row + d]);
        return;
    }
    const Stored* tile = block + spot.token / kTile * kTile * row + spot.token % kTile * pack;
    for (int d = 0; d < side.dim; d += pack, tile += kTile * pack)
        for (int i = 0; i < pack; ++i) put(d + i, tile[i]);
}

// A plain tile in the arrangement of tiled ones; tokens that are not live become zeros. keys: as K, else as V.
template <class Lanes, class Stored = typename Lanes::T, auto Widen = nullptr>
void copy_plain(const Blocks& blocks, const Side& side, const Slot& slot, bool keys, typename Lanes::T* to) {
    constexpr int pack = Lanes::kPack;
    const int dim = side.dim;
    std::fill(to, to + kTile * dim, typename Lanes::T{});
    for (int j = 0; j < kTile; ++j) {
        if (!(slot.live >> j & 1)) continue;
        each_element<Stored>(blocks, side, slot.begin + j, [&](int d, Stored x) __attribute__((always_inline)) {
            const int at = keys ? (d / pack * kTile + j) * pack + d % pack : (j / pack * dim + d) * pack + j % pack;
            if constexpr (std::is_null_pointer_v<decltype(Widen)>) to[at] = x;
            else to[at] = Widen(x);
        });
    }
}

// How blocks are read: the lanes to compute with, and whether tiles lie as these want them or are copied, by `copy`.
template <class Lanes, bool Tiled>
struct Reading {
    using Format = Lanes;
    using T = typename Lanes::T;
    static constexpr bool kTiled = Tiled;
    static constexpr bool kQuantised = std::is_base_of_v<Int8, Lanes>, kZero = std::is_same_v<Lanes, Int4>;

    void (*copy)(const Blocks& blocks, const Side& side, const Slot& slot, bool keys, T* to) = nullptr;
};

template <class Lanes>
using InPlace = Reading<Lanes, true>;
template <class Lanes>
using Copied = Reading<Lanes, false>;

// A tile of V in tiled layout with zeros for tokens that are not live: their weight is zero, and 0 * NaN is not.
template <class Lanes>
const typename Lanes::T* copy_live(const typename Lanes::T* from, const Slot& slot, int dim, typename Lanes::T* to) {
    constexpr int pack = Lanes::kPack;
    std::copy(from, from + kTile * dim, to);
    for (int j = 0; j < kTile; ++j) {
        if (slot.live >> j & 1) continue;
        for (int d = 0; d < dim; ++d) to[(j / pack * dim + d) * pack + j % pack] = 0;
    }
    return to;
}

// The tokens' scales as floats, zero for tokens that are not live. whole: address of all sixteen, null where they do not lie
// side by side. to: [16].
inline void copy_scales(const Blocks& blocks, const Plane& plane, const Slot& slot, const std::uint8_t* whole, float* to) {
    if (whole && slot.live == kAllLive) {
        for (int j = 0; j < kTile; j += W) {
            store(to + j, float_of_float16s(*reinterpret_cast<const UnalignedH*>(whole + j * kScaleBytes)));
        }
        return;
    }
    for (int j = 0; j < kTile; ++j) {
        to[j] = 0;
        if (!(slot.live >> j & 1)) continue;
        const Spot spot = blocks.spot(slot.begin + j);
        to[j] = float_of_float16(reinterpret_cast<const std::uint16_t*>(spot.in(plane))[spot.token]);
    }
}
