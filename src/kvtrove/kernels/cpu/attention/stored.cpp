#include "attention/stored.h"

#include "attention/codecs/convert.h"
#include "attention/codecs/turn.h"
#include "attention/place.h"

namespace kvtrove::attention {

namespace {

template <class T>
void collect(const Place& from, int dim, T* to) {
    const auto* data = reinterpret_cast<const T*>(from.data);
    if (from.pack == 1) {
        for (int d = 0; d < dim; ++d) to[d] = data[d * from.stride];
        return;
    }
    for (int d = 0; d < dim; d += from.pack, data += from.stride)
        for (int i = 0; i < from.pack; ++i) to[d + i] = data[i];
}

float float_of_float8(std::uint8_t x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x80) << 24;
    return float_of_bits(sign | bits_of_float(float_of_bits(static_cast<std::uint32_t>(x & 0x7F) << 20) * 0x1p120f));
}

// bytes: as they are stored. Scales, and zeros, of groups of elements lie block_size apart.
void scaled(const Layer& layer, const Side& side, const std::uint8_t* bytes, std::int64_t slot, int head, float* to) {
    const std::uint16_t* scale = numbers_of(layer, side, side.scale, slot, head);
    const int dim = side.dim, shared = dim / side.groups(), half = dim / 2;
    if (side.stored != Element::int4) {
        const float factor = float_of_float16(*scale);
        for (int d = 0; d < dim; ++d) {
            to[d] = (side.stored == Element::int8 ? static_cast<std::int8_t>(bytes[d]) : float_of_float8(bytes[d])) * factor;
        }
        return;
    }
    const std::uint16_t* zero = numbers_of(layer, side, side.zero, slot, head);
    for (int d = 0; d < dim; ++d) {
        const std::ptrdiff_t group = d / shared * std::ptrdiff_t{layer.block_size};
        const auto code = static_cast<float>(d < half ? bytes[d] & 15 : bytes[d - half] >> 4);
        to[d] = code * float_of_float16(scale[group]) + float_of_float16(zero[group]);
    }
    if (side.turned) turn_back(to, dim);
}

}  // namespace

void load_vector(const Layer& layer, const Side& side, std::int64_t slot, int head, bool keys, float* to) {
    const Place from = place(layer, side, slot, head, keys);
    alignas(4) std::uint8_t bytes[kMaxDim * 4];
    const auto elements = static_cast<int>(side.vector_bytes() / static_cast<std::int64_t>(bytes_of(side.stored)));
    switch (bytes_of(side.stored)) {
        case 1: collect(from, elements, bytes); break;
        case 2: collect(from, elements, reinterpret_cast<std::uint16_t*>(bytes)); break;
        default: collect(from, elements, reinterpret_cast<std::uint32_t*>(bytes));
    }
    if (side.stored <= Element::bfloat16) floats_of(bytes, side.stored, side.dim, to);
    else scaled(layer, side, bytes, slot, head, to);
}

}  // namespace kvtrove::attention
