// The primitives of vectors in plain C++, for any W. Included by a level inside its namespace, after types.h.

// b where one is a NaN.
INLINE F larger(F a, F b) { return a > b ? a : b; }

INLINE F fma(F a, F b, F c) {
#if defined(__FP_FAST_FMAF)
    for (int i = 0; i < W; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// sum plus the products of the 16-bit numbers in a and b, neighbours added.
INLINE I add_pairs(I sum, I a, I b) {
#if defined(__SSE2__)
    I products;
    for (int i = 0; i < W / 4; ++i) {
        reinterpret_cast<__m128i*>(&products)[i] =
            _mm_madd_epi16(reinterpret_cast<const __m128i*>(&a)[i], reinterpret_cast<const __m128i*>(&b)[i]);
    }
    return sum + products;
#else
    return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

constexpr bool kByteProducts = W == 16;  // as the level of as many lanes has them
#include "common/vector/plain_bytes.h"

// float16 to float32.
INLINE F float_of_float16s(H halves) {
    const I x = __builtin_convertvector(halves, I);
    const I sign = (x & 0x8000) << 16, rest = (x & 0x7FFF) << 13;
    const I finite = (I)((F)rest * 0x1p112f);
    return (F)(sign | ((rest >= 0x7C00 << 13) ? rest | 0x7F800000 : finite));
}

// bf16: to nearest, ties to even; normal numbers and zero alone. And back.
INLINE H bfloat16_of(F x) {
    const U bits = (U)x;
    return __builtin_convertvector((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, H);
}
INLINE F float_of(H x) { return (F)(__builtin_convertvector(x, U) << 16); }

// Two vectors of them, one behind the other.
INLINE void store_bfloat16(std::uint16_t* to, F low, F high) {
    *reinterpret_cast<UnalignedH*>(to) = bfloat16_of(low), *reinterpret_cast<UnalignedH*>(to + W) = bfloat16_of(high);
}

// x less the whole number below it, and y times 2 to that number.
INLINE F fraction_of(F x) {
    for (int i = 0; i < W; ++i) x[i] = std::isinf(x[i]) ? 0 : x[i] - std::floor(x[i]);
    return x;
}
INLINE F times_power(F y, F x) {
    for (int i = 0; i < W; ++i) y[i] = std::ldexp(y[i], static_cast<int>(std::floor(std::max(-1000.0f, x[i]))));
    return y;
}
