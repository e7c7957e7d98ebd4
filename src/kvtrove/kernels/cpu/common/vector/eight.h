// Eight numbers at a time, for functions that are compiled several times. Compile with -ffp-contract=off: products are not
// joined with sums, so all of them give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Compiled several times where the loader can choose.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define KVTROVE_EIGHT_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KVTROVE_EIGHT_CLONES
#endif

namespace kvtrove::eight {

typedef float Floats __attribute__((vector_size(32)));
typedef std::uint32_t Words __attribute__((vector_size(32)));
typedef std::uint16_t Halves __attribute__((vector_size(16)));
constexpr std::size_t kLanes = sizeof(Floats) / sizeof(float);

// Vectors go by reference: how they are passed depends on the instruction set.
[[gnu::always_inline]] inline void load(const float* p, Floats& x) { std::memcpy(&x, p, sizeof x); }
[[gnu::always_inline]] inline void load(const std::uint16_t* p, Floats& x) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    x = (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// The 16 bits of bfloat16_of_float, in the low half of each lane. gcc makes branches of a loop that looks for NaN.
[[gnu::always_inline]] inline void bfloat16_bits(const Floats& x, Words& bits) {
    bits = (Words)x;
    const Words nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    bits = x == x ? nearest : (bits >> 16) | 0x40;
}

[[gnu::always_inline]] inline void store(float* p, const Floats& x) { std::memcpy(p, &x, sizeof x); }
[[gnu::always_inline]] inline void store(std::uint16_t* p, const Floats& x) {
    Words bits;
    bfloat16_bits(x, bits);
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(p, &halves, sizeof halves);
}

// x as T can hold it.
template <class T>
[[gnu::always_inline]] inline void round_to(Floats& x) {
    if constexpr (sizeof(T) == 2) {
        Words bits;
        bfloat16_bits(x, bits);
        x = (Floats)(bits << 16);
    }
}

}  // namespace kvtrove::eight
