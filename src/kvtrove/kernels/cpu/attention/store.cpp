// New K/V into their slots, in the layout of the layer; rotation on the way.

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "attention/codecs/convert.h"
#include "attention/codecs/turn.h"
#include "attention/place.h"
#include "common/threads.h"
#include "common/vector/eight.h"

namespace kvtrove::attention {

namespace {

constexpr std::int64_t kWorthAThread = 16;  // tokens to store before another thread is woken

template <class T>
void scatter(const T* from, int dim, const Place& to) {
    auto* data = reinterpret_cast<T*>(to.data);
    if (to.pack == 1) {
        for (int d = 0; d < dim; ++d) data[d * to.stride] = from[d];
        return;
    }
    for (int d = 0; d < dim; d += to.pack, data += to.stride)
        for (int i = 0; i < to.pack; ++i) data[i] = from[d + i];
}

// One scale per vector, rounded up so that `limit` of it is never too small; the same arithmetic as kv/formats/int8.py.
// encode(d, x): of element d, in units of the scale.
template <class Encode>
std::uint16_t quantise(const float* from, int dim, float limit, const Encode& encode) {
    float most = 0;
    for (int d = 0; d < dim; ++d) most = std::max(most, std::fabs(from[d]));
    const float wanted = (most / limit) * (1.0f + 0x1p-10f) + 0x1p-24f;
    const std::uint16_t scale = float16_of_float(std::min(wanted, 65504.0f));
    const float step = float_of_float16(scale);
    for (int d = 0; d < dim; ++d) encode(d, from[d] / step);
    return scale;
}

std::uint16_t quantise_int8(const float* from, int dim, std::uint8_t* to) {
    return quantise(from, dim, 127, [&](int d, float x) {
        to[d] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(std::nearbyint(x), -127.0f, 127.0f)));
    });
}

// To nearest, ties to even; below 2^-6 in steps of 2^-9.
std::uint8_t float8_of_float(float x) {
    const std::uint32_t bits = bits_of_float(x), sign = bits >> 24 & 0x80, size = bits & 0x7FFFFFFF;
    if (size < 0x3C800000) {
        return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(std::nearbyint(float_of_bits(size) * 0x1p9f)));
    }
    return static_cast<std::uint8_t>(sign | (((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (120 << 3)));
}

std::uint16_t quantise_float8(const float* from, int dim, std::uint8_t* to) {
    return quantise(from, dim, 448, [&](int d, float x) { to[d] = float8_of_float(std::clamp(x, -448.0f, 448.0f)); });
}

// Codes, with their scale and zero; the same arithmetic as kv/formats/codes.py. Adding kRounds rounds to a whole number, ties
// to even.
struct Grid {
    std::uint16_t scale, zero;
};

Grid quantise_codes(const float* from, int dim, float* codes) {
    constexpr float most = 15, least = 0x1p-24f, largest = 65504, kRounds = 12582912;
    float low = from[0], high = from[0];
    for (int d = 1; d < dim; ++d) low = std::min(low, from[d]), high = std::max(high, from[d]);
    const auto encode = [&](float zero, float step) {
        for (int d = 0; d < dim; ++d) codes[d] = std::clamp((from[d] - zero) / step + kRounds - kRounds, 0.0f, most);
    };
    encode(low, std::max((high - low) / most, least));
    double total = 0, squares = 0, sums = 0, products = 0;
    for (int d = 0; d < dim; ++d) {
        const double code = codes[d], x = from[d];
        total += code, squares += code * code, sums += x, products += x * code;
    }
    const double slope = (dim * products - total * sums) / std::max(dim * squares - total * total, 1.0);
    const std::uint16_t scale = float16_of_float(std::clamp(static_cast<float>(slope), least, largest));
    const double offset = (sums - static_cast<double>(float_of_float16(scale)) * total) / dim;
    const std::uint16_t zero = float16_of_float(std::clamp(static_cast<float>(offset), -largest, largest));
    encode(float_of_float16(zero), float_of_float16(scale));
    return {scale, zero};
}

float rounded(float x, Element element) {
    if (element == Element::bfloat16) return float_of_bfloat16(bfloat16_of_float(x));
    return element == Element::float16 ? float_of_float16(float16_of_float(x)) : x;
}

// The first pairs of x [2 * half or more], eight at a time; returns how many. C: float32 or bf16, as which cos and sin are
// stored and to which every operation is rounded.
template <class C>
[[gnu::always_inline]] inline int rotate_eights(float* x, const C* cos, const C* sin, int half) {
    using namespace eight;
    constexpr int kEight = kLanes;
    int d = 0;
    for (Floats a, b, c, s; d + kEight <= half; d += kEight) {
        load(x + d, a), load(x + d + half, b), load(cos + d, c), load(sin + d, s);
        Floats ac = a * c, bs = b * s, bc = b * c, as = a * s;
        round_to<C>(ac), round_to<C>(bs), round_to<C>(bc), round_to<C>(as);
        Floats low = ac - bs, high = bc + as;
        round_to<C>(low), round_to<C>(high);
        eight::store(x + d, low), eight::store(x + d + half, high);
    }
    return d;
}

KVTROVE_EIGHT_CLONES int rotate_eights_of(float* x, const float* cos, const float* sin, int half) {
    return rotate_eights(x, cos, sin, half);
}

KVTROVE_EIGHT_CLONES int rotate_eights_of(float* x, const std::uint16_t* cos, const std::uint16_t* sin, int half) {
    return rotate_eights(x, cos, sin, half);
}

// x: [2 * half or more]
template <Element Of>
void rotate_as(float* x, const Rope& rope, std::int64_t token) {
    const int half = rope.half;
    const std::size_t at = token * half * bytes_of(Of);
    const std::uint8_t *cos = rope.cos + at, *sin = rope.sin + at;
    int d = 0;
    if constexpr (Of == Element::bfloat16) {
        d = rotate_eights_of(x, reinterpret_cast<const std::uint16_t*>(cos), reinterpret_cast<const std::uint16_t*>(sin), half);
    } else if constexpr (Of == Element::float32) {
        d = rotate_eights_of(x, reinterpret_cast<const float*>(cos), reinterpret_cast<const float*>(sin), half);
    }
    for (; d < half; ++d) {
        float c, s;
        floats_of(cos + d * bytes_of(Of), Of, 1, &c), floats_of(sin + d * bytes_of(Of), Of, 1, &s);
        const float a = x[d], b = x[d + half];
        x[d] = rounded(rounded(a * c, Of) - rounded(b * s, Of), Of);
        x[d + half] = rounded(rounded(b * c, Of) + rounded(a * s, Of), Of);
    }
}

void rotate_vector(float* x, const Rope& rope, std::int64_t token) {
    switch (rope.element) {
        case Element::bfloat16: return rotate_as<Element::bfloat16>(x, rope, token);
        case Element::float16: return rotate_as<Element::float16>(x, rope, token);
        default: return rotate_as<Element::float32>(x, rope, token);
    }
}

// One vector to be stored. rope: null when it is not to be turned.
struct Vector {
    const std::uint8_t* data;
    Element element;
    std::int64_t token;
    const Rope* rope;
};

void store_codes(const Layer& layer, const Side& side, const float* from, std::int64_t slot, int head, std::uint8_t* to) {
    std::uint16_t* scale = numbers_of(layer, side, side.scale, slot, head);
    std::uint16_t* zero = numbers_of(layer, side, side.zero, slot, head);
    const int shared = side.dim / side.groups();
    float codes[kMaxDim];
    for (int group = 0; group < side.groups(); ++group, scale += layer.block_size, zero += layer.block_size) {
        const Grid grid = quantise_codes(from + group * shared, shared, codes + group * shared);
        *scale = grid.scale, *zero = grid.zero;
    }
    for (int d = 0; d < side.dim / 2; ++d) {
        to[d] = static_cast<std::uint8_t>(static_cast<int>(codes[d]) | static_cast<int>(codes[d + side.dim / 2]) << 4);
    }
}

void store_vector(const Layer& layer, const Side& side, const Vector& vector, std::int64_t slot, int head, bool keys) {
    const int dim = side.dim;
    const std::uint8_t* from = vector.data;
    float wide[kMaxDim];
    std::uint8_t narrow[kMaxDim * 4];
    const bool as_it_is = vector.element == side.stored && vector.rope == nullptr;
    if (!as_it_is || reinterpret_cast<std::uintptr_t>(from) % bytes_of(vector.element)) {
        floats_of(from, vector.element, dim, wide);
        if (vector.rope) rotate_vector(wide, *vector.rope, vector.token);
        if (side.turned) turn(wide, dim);
        if (side.stored == Element::int8) {
            *numbers_of(layer, side, side.scale, slot, head) = quantise_int8(wide, dim, narrow);
        } else if (side.stored == Element::float8) {
            *numbers_of(layer, side, side.scale, slot, head) = quantise_float8(wide, dim, narrow);
        } else if (side.stored == Element::int4) {
            store_codes(layer, side, wide, slot, head, narrow);
        } else {
            from_floats(wide, side.stored, dim, narrow);
        }
        from = narrow;
    }
    const Place to = place(layer, side, slot, head, keys);
    switch (bytes_of(side.stored)) {
        case 1: return scatter(reinterpret_cast<const std::uint8_t*>(from), static_cast<int>(side.vector_bytes()), to);
        case 2: return scatter(reinterpret_cast<const std::uint16_t*>(from), dim, to);
        default: return scatter(reinterpret_cast<const std::uint32_t*>(from), dim, to);
    }
}

void store_token(const Layer& layer, std::int64_t slot, std::int64_t token, const Rows& rows, bool keys,
                 const Rope* rope) {
    const Side& side = keys ? layer.k : layer.v;
    const std::size_t bytes = side.dim * bytes_of(rows.element);
    for (int head = 0; head < layer.kv_heads; ++head) {
        const std::uint8_t* from = rows.data + token * rows.stride + head * bytes;
        store_vector(layer, side, {from, rows.element, token, rope}, slot, head, keys);
    }
}

// Threads worth waking for so many tokens.
int threads_for(std::int64_t tokens, int num_threads) {
    const auto useful = static_cast<int>(std::min<std::int64_t>(tokens / kWorthAThread + 1, 1 << 16));
    return std::min(num_threads > 0 ? num_threads : static_cast<int>(max_threads()), useful);
}

}  // namespace

void store(const Layer& layer, const Batch& batch, const Rows& k, const Rows& v, int num_threads, const Rope* rope) {
    for (const Side* side : {&layer.k, &layer.v}) {
        if (side->channels || side->stored == Element::int2) throw std::invalid_argument("such codes are sealed, not stored");
    }
    const std::int64_t tokens = batch.tokens();
    const int threads = threads_for(tokens, num_threads);
    parallel_ranges(tokens, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin; token < end; ++token) {
            store_token(layer, batch.slots[token], token, k, true, rope);
            if (!layer.v.row) store_token(layer, batch.slots[token], token, v, false, nullptr);
        }
    });
    if (layer.select) summarise(layer, batch, num_threads);
}

void rotate(const Rows& x, std::int64_t tokens, int heads, int dim, const Rope& rope, int num_threads) {
    const int threads = threads_for(tokens, num_threads);
    parallel_ranges(tokens, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin; token < end; ++token) {
            for (int head = 0; head < heads; ++head) {
                std::uint8_t* at = x.data + token * x.stride + head * dim * bytes_of(x.element);
                float wide[kMaxDim];
                floats_of(at, x.element, 2 * rope.half, wide);
                rotate_vector(wide, rope, token);
                from_floats(wide, x.element, 2 * rope.half, at);
            }
        }
    });
}

}  // namespace kvtrove::attention
