// What this processor can run, decided once per call by cpuid and by what the operating system enabled.
#pragma once

#include <string_view>

namespace kvtrove {

// Ordered: each level includes the ones below it.
enum class Isa {
    portable,  // the compiler's baseline for the platform (x86-64: SSE2)
    avx2,      // AVX2 + FMA + F16C
    avx512,    // AVX-512 F, BW, DQ, VL + VNNI + BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later)
    amx,       // AMX tiles with BF16 and INT8 products, granted by the kernel, and AVX-512 VBMI
};

std::string_view name(Isa level);

// The highest level of this machine.
Isa detect_isa();

// The level to run: detect_isa() for "auto", else the named one.
// Throws std::invalid_argument when the name is unknown or the processor lacks it.
Isa choose_isa(std::string_view wanted);

}  // namespace kvtrove
