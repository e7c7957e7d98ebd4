// The primitives of sixteen lanes. Included by a level inside its namespace, after types.h.

// b where one is a NaN.
INLINE F larger(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }

INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

// sum plus the products of the 16-bit numbers in a and b, neighbours added.
INLINE I add_pairs(I sum, I a, I b) { return (I)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }

// sum plus the products of unsigned and signed bytes, four neighbours added.
constexpr bool kByteProducts = true;
INLINE I add_quads(I sum, I positive, I any) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)positive, (__m512i)any); }

// float16 to float32.
INLINE F float_of_float16s(H x) { return (F)_mm512_cvtph_ps((__m256i)x); }

// bf16: to nearest, ties to even; normal numbers and zero alone. And back.
INLINE H bfloat16_of(F x) { return (H)_mm512_cvtneps_pbh((__m512)x); }
INLINE F float_of(H x) { return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16); }

// Two vectors of them, one behind the other.
INLINE void store_bfloat16(std::uint16_t* to, F low, F high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// x less the whole number below it, and y times 2 to that number.
INLINE F fraction_of(F x) { return (F)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
INLINE F times_power(F y, F x) { return (F)_mm512_scalef_ps((__m512)y, (__m512)x); }

// The lowest byte of each lane.
INLINE void store_bytes(std::int8_t* to, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}
