// The primitives of eight lanes. Included by a level inside its namespace, after types.h.

// b where one is a NaN.
INLINE F larger(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }

// In place: left to itself, gcc lets sums wander between registers in the long unrolled products, and spills them.
INLINE F fma(F a, F b, F c) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
}

// sum plus the products of the 16-bit numbers in a and b, neighbours added. At once: gcc would make all products first, and
// spill them.
INLINE I add_pairs(I sum, I a, I b) {
    I product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
    return sum;
}

constexpr bool kByteProducts = false;
#include "common/vector/plain_bytes.h"

// float16 to float32.
INLINE F float_of_float16s(H x) { return (F)_mm256_cvtph_ps((__m128i)x); }
