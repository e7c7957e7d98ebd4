// The primitives of sixteen lanes. Included by a level inside its namespace, after vector_types.h.

INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

// Products of 16-bit numbers, neighbours added.
INLINE I madd(I a, I b) { return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b); }

// The lower 16 bits of each lane are a float16.
INLINE F float_of_float16s(I x) { return (F)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)x)); }
