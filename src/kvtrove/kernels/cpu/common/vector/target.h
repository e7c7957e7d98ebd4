// Instruction sets of the levels: what lies between KVTROVE_BEGIN(set) and KVTROVE_END may use it. Only a level's own file
// says so, around a namespace of its own that it includes shared sources into; all other headers come before it, because
// inline functions that a level compiled must not serve the others.
#pragma once

#define INLINE [[gnu::always_inline]] inline

// A function that stays one: neither merged into its callers nor copied for what they pass.
#if defined(__clang__)
#define APART [[gnu::noinline]] inline
#else
#define APART [[gnu::noinline, gnu::noclone]] inline
#endif

#if defined(__x86_64__)
#include <immintrin.h>

#define KVTROVE_AVX2 "avx2,fma,f16c"
#define KVTROVE_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"

#if defined(__clang__)
#define KVTROVE_AMX KVTROVE_AVX512 ",amx-tile,amx-bf16,amx-int8"
#else
#define KVTROVE_AMX KVTROVE_AVX512  // instructions of tiles are written as assembly
// gcc's own AVX-512 headers start results from variables that they leave unset on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#define KVTROVE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KVTROVE_BEGIN(set) KVTROVE_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define KVTROVE_END _Pragma("clang attribute pop")
#else
#define KVTROVE_BEGIN(set) _Pragma("GCC push_options") KVTROVE_PRAGMA(GCC target set)
#define KVTROVE_END _Pragma("GCC pop_options")
#endif

// The level of tiles, or its emulation (amx_tiles.h), which uses no instruction beyond the compiler's baseline.
#if defined(KVTROVE_EMULATE_AMX)
#define KVTROVE_BEGIN_AMX
#define KVTROVE_END_AMX
#define KVTROVE_AMX_LANES "common/vector/portable.h"
#else
#define KVTROVE_BEGIN_AMX KVTROVE_BEGIN(KVTROVE_AMX)
#define KVTROVE_END_AMX KVTROVE_END
#define KVTROVE_AMX_LANES "common/vector/avx512.h"
#endif
