// For building llama.cpp with gcc 12 on processors with AMX: `-include` this in its C++ flags.
//
// gcc 12's intrinsics of tiles do not tell the compiler which memory they read: of a tile configuration, it believes, the
// first eight bytes. Stores to the rest are dropped as dead, and the first load of a tile is an illegal instruction.
#if defined(__cplusplus) && defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadd_internal
#define _tile_loadd_internal(tile, base, stride)                             \
    __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #tile                     \
                     :                                                       \
                     : "r"((const void*)(base)), "r"((long)(stride))         \
                     : "memory")
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%0" : : "m"(*(const char (*)[64])(config)) : "memory")
#endif
