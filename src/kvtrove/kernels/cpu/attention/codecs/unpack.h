// Sides whose numbers no product takes as they lie: sixteen tokens at a time become a tile of float32, which stays in the
// caches while the product runs. Included by each level inside its namespace, after gather.h.
//
// A codec is one function, from lanes of 32 bits to numbers:
//
//   kParts             numbers in a byte: part p of byte j of a vector of b bytes is element j + p * b
//   kZero              numbers have a zero beside their scale
//   number<i, p>(x)    of each lane, part p of byte i

struct Float8 {
    static constexpr int kParts = 1;
    static constexpr bool kZero = false;

    // e4m3: four bits of exponent, three of mantissa. As a float32's they are 120 too small; the product is exact.
    template <int Byte, int>
    INLINE static F number(I x) {
        const I bits = (I)((U)x >> (8 * Byte)) & 0xFF;
        return (F)((I)((F)((bits & 0x7F) << 20) * all(0x1p120f)) | (bits & 0x80) << 24);
    }
};

template <int Bits>
struct Codes {
    static constexpr int kParts = 8 / Bits;
    static constexpr bool kZero = true;

    template <int Byte, int Part>
    INLINE static F number(I x) {
        return __builtin_convertvector((I)((U)x >> (8 * Byte + Bits * Part)) & ((1 << Bits) - 1), F);
    }
};

// Scales or zeros of the tokens of a slot, [groups][kTile]; zero for tokens that are not live.
inline void load_groups(const Blocks& blocks, const Side& side, const Plane& plane, const Slot& slot, float* to) {
    for (int group = 0; group < side.groups(); ++group, to += kTile) {
        for (int j = 0; j < kTile; ++j) {
            to[j] = 0;
            if (!(slot.live >> j & 1)) continue;
            const Spot spot = blocks.spot(slot.begin + j);
            const std::int64_t at = (std::int64_t{blocks.kv_head} * (side.groups() - 1) + group) * blocks.layer.block_size;
            to[j] = float_of_float16(reinterpret_cast<const std::uint16_t*>(spot.in(plane))[at + spot.token]);
        }
    }
}

// A tile of an unpacked side, as copy_plain makes one. Channels: of keys whose elements have a scale and a zero each, for all
// tokens of a block.
template <class Codec, bool Channels = false>
void unpack(const Blocks& blocks, const Side& side, const Slot& slot, bool keys, float* to) {
    float scale[kTile * kMaxGroups], zero[kTile * kMaxGroups];
    const Spot spot = blocks.spot(slot.begin);
    const auto channel = [&](const Plane& plane, int d) {
        return float_of_float16(reinterpret_cast<const std::uint16_t*>(spot.in(plane))[blocks.kv_head * side.dim + d]);
    };
    if constexpr (!Channels) {
        load_groups(blocks, side, side.scale, slot, scale);
        if constexpr (Codec::kZero) load_groups(blocks, side, side.zero, slot, zero);
    }
    const std::uint8_t* from = spot.in(side.data) + spot.token * side.vector_bytes();
    const int bytes = static_cast<int>(side.vector_bytes()), shared = side.dim / side.groups();
    each<Codec::kParts>([&](auto part) __attribute__((always_inline)) {
        each<4>([&](auto byte) __attribute__((always_inline)) {
            constexpr int p = decltype(part)::value, i = decltype(byte)::value;
            const auto number = [&](const std::uint8_t* lanes) __attribute__((always_inline)) {
                return Codec::template number<i, p>(load(reinterpret_cast<const std::int32_t*>(lanes)));
            };
            if constexpr (Channels) {
                for (int quad = 0; quad < bytes / 4; ++quad) {
                    const int d = 4 * quad + i + p * bytes;
                    const F factor = all(channel(side.scale, d)), least = all(channel(side.zero, d));
                    for (int j = 0; j < kTile; j += W)
                        store(to + d * kTile + j, number(from + 4 * (quad * kTile + j)) * factor + least);
                }
            } else if (keys) {
                for (int quad = 0; quad < bytes / 4; ++quad) {
                    const int d = 4 * quad + i + p * bytes, group = d / shared * kTile;
                    for (int j = 0; j < kTile; j += W) {
                        F x = number(from + 4 * (quad * kTile + j)) * load(scale + group + j);
                        if constexpr (Codec::kZero) x += load(zero + group + j);
                        store(to + d * kTile + j, x);
                    }
                }
            } else {
                for (int quad = 0; quad < kTile / 4; ++quad) {
                    const int j = 4 * quad + i;
                    for (int c = 0; c < bytes; c += W) {
                        const int d = c + p * bytes, at = d / shared * kTile + j;
                        F x = number(from + 4 * (quad * bytes + c)) * all(scale[at]);
                        if constexpr (Codec::kZero) x += all(zero[at]);
                        store(to + j * side.dim + d, x);
                    }
                }
            }
        });
    });
}
