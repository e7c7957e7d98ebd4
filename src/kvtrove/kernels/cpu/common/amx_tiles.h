// AMX tiles: 8 registers of 16 rows of 64 bytes, and products of them.
//
//   C [rows][16] float32 += A [rows][32] bf16    . B [16][16][2] bf16      B row k, column n: inputs 2k, 2k + 1 of output n
//   C [rows][16] int32   += A [rows][64] int8    . B [16][16][4] int8      four inputs at a time, exact
//
// The instructions are written as assembly: gcc's macros want literal register numbers, and gcc 12's _tile_loadconfig
// declares only part of its operand as read. With KVTROVE_EMULATE_AMX the same arithmetic runs in plain C++, so that
// code for tiles is tested on machines that have none.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS, TDPBSSD, TDPBUSD.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__clang__)
#define KVTROVE_TILES [[gnu::always_inline, gnu::target("amx-tile,amx-bf16,amx-int8")]] inline
#else
#define KVTROVE_TILES [[gnu::always_inline]] inline
#endif

namespace kvtrove::tiles {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

// Rows and bytes per row of each register. What lies beyond them is neither read nor written.
struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    constexpr void set(int tile, int num_rows, int num_row_bytes = kRowBytes) {
        rows[tile] = static_cast<std::uint8_t>(num_rows);
        row_bytes[tile] = static_cast<std::uint16_t>(num_row_bytes);
    }
};
static_assert(sizeof(Shapes) == 64);

#if defined(KVTROVE_EMULATE_AMX)

struct Registers {
    Shapes shapes;
    alignas(64) std::uint8_t bytes[kTiles][kRows][kRowBytes];
};
inline thread_local Registers registers;

inline void configure(const Shapes& shapes) {
    registers.shapes = shapes;
    std::memset(registers.bytes, 0, sizeof registers.bytes);
}

inline void release() { registers.shapes = Shapes{}; }

template <int Tile>
void zero() {
    std::memset(registers.bytes[Tile], 0, sizeof registers.bytes[Tile]);
}

template <int Tile>
void load(const void* from, std::ptrdiff_t stride) {
    zero<Tile>();
    for (int row = 0; row < registers.shapes.rows[Tile]; ++row)
        std::memcpy(registers.bytes[Tile][row], static_cast<const std::uint8_t*>(from) + row * stride,
                    registers.shapes.row_bytes[Tile]);
}

template <int Tile>
void store(void* to, std::ptrdiff_t stride) {
    for (int row = 0; row < registers.shapes.rows[Tile]; ++row)
        std::memcpy(static_cast<std::uint8_t*>(to) + row * stride, registers.bytes[Tile][row],
                    registers.shapes.row_bytes[Tile]);
}

// Products read registers alone, whose memory is theirs: the address sanitizer would take most of a test's time here.
#define KVTROVE_UNCHECKED [[gnu::no_sanitize_address]]

constexpr int kColumns = kRowBytes / 4;

// Aborts where the instructions fault: shapes that do not fit each other.
template <int C, int A, int B>
void require_shapes() {
    const Shapes& shapes = registers.shapes;
    if (shapes.rows[C] != shapes.rows[A] || shapes.row_bytes[C] != shapes.row_bytes[B] ||
        shapes.row_bytes[A] != 4 * shapes.rows[B])
        std::abort();
}

KVTROVE_UNCHECKED inline float float_at(const std::uint8_t* bf16) {
    std::uint32_t bits = (static_cast<std::uint32_t>(bf16[0]) << 16) | (static_cast<std::uint32_t>(bf16[1]) << 24);
    if ((bits & 0x7F800000) == 0) bits &= 0x80000000;  // subnormal numbers count as zero
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Columns beyond those of the shape are computed as well: they are zero, and are not stored.
template <int C, int A, int B>
KVTROVE_UNCHECKED void dot_bf16() {
    require_shapes<C, A, B>();
    Registers& all = registers;
    const int rows = all.shapes.rows[C], steps = all.shapes.rows[B];
    float b[kRows][2][kColumns];
    for (int k = 0; k < steps; ++k)
        for (int n = 0; n < 2 * kColumns; ++n) b[k][n % 2][n / 2] = float_at(all.bytes[B][k] + 2 * n);
    for (int m = 0; m < rows; ++m) {
        float sums[kColumns], even[kColumns] = {}, odd[kColumns] = {};
        for (int k = 0; k < steps; ++k) {
            const float first = float_at(all.bytes[A][m] + 4 * k), second = float_at(all.bytes[A][m] + 4 * k + 2);
            for (int n = 0; n < kColumns; ++n) {
                even[n] = std::fma(first, b[k][0][n], even[n]);
                odd[n] = std::fma(second, b[k][1][n], odd[n]);
            }
        }
        std::memcpy(sums, all.bytes[C][m], sizeof sums);
        for (int n = 0; n < kColumns; ++n) sums[n] += even[n] + odd[n];
        std::memcpy(all.bytes[C][m], sums, sizeof sums);
    }
}

// Left, Right: the types of the bytes of A and B.
template <class Left, class Right, int C, int A, int B>
KVTROVE_UNCHECKED void dot_bytes() {
    require_shapes<C, A, B>();
    Registers& all = registers;
    const int rows = all.shapes.rows[C], steps = all.shapes.rows[B];
    for (int m = 0; m < rows; ++m) {
        std::int32_t sums[kColumns];
        std::memcpy(sums, all.bytes[C][m], sizeof sums);
        for (int k = 0; k < steps; ++k)
            for (int n = 0; n < kColumns; ++n)
                for (int i = 0; i < 4; ++i)
                    sums[n] += static_cast<Left>(all.bytes[A][m][4 * k + i]) * static_cast<Right>(all.bytes[B][k][4 * n + i]);
        std::memcpy(all.bytes[C][m], sums, sizeof sums);
    }
}

template <int C, int A, int B>
void dot_i8() { dot_bytes<std::int8_t, std::int8_t, C, A, B>(); }

template <int C, int A, int B>
void dot_u8() { dot_bytes<std::uint8_t, std::int8_t, C, A, B>(); }

template <int C, int A, int B>
void dot_i8_u8() { dot_bytes<std::int8_t, std::uint8_t, C, A, B>(); }

#else

// Must come before anything else, in every thread, once per change of shapes; registers become zero.
KVTROVE_TILES void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory"); }

// Gives the registers back: a thread that keeps them makes every context switch save 8 KiB.
KVTROVE_TILES void release() { asm volatile("tilerelease" : : : "memory"); }

template <int Tile>
KVTROVE_TILES void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}

template <int Tile>
KVTROVE_TILES void load(const void* from, std::ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
KVTROVE_TILES void store(void* to, std::ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}

template <int C, int A, int B>
KVTROVE_TILES void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// A signed, B signed.
template <int C, int A, int B>
KVTROVE_TILES void dot_i8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// A unsigned, B signed.
template <int C, int A, int B>
KVTROVE_TILES void dot_u8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// A signed, B unsigned.
template <int C, int A, int B>
KVTROVE_TILES void dot_i8_u8() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace kvtrove::tiles
