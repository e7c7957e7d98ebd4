#include "common/isa.h"

#include <array>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kvtrove {

namespace {

constexpr std::array<std::string_view, 4> kNames = {"portable", "avx2", "avx512", "amx"};

#if defined(__x86_64__)
// __builtin_cpu_supports asks cpuid and, through XGETBV, whether the operating system saves the registers.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

// Linux hands out the 8 KiB of tile registers on request only; the grant holds for the whole process.
bool has_amx() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("avx512vbmi") &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

}  // namespace

std::string_view name(Isa level) { return kNames[static_cast<std::size_t>(level)]; }

Isa detect_isa() {
#if defined(__x86_64__)
    if (!has_avx2()) return Isa::portable;
    if (!has_avx512()) return Isa::avx2;
    return has_amx() ? Isa::amx : Isa::avx512;
#else
    return Isa::portable;
#endif
}

Isa choose_isa(std::string_view wanted) {
    const Isa best = detect_isa();
    if (wanted == "auto") return best;
    for (std::size_t i = 0; i < kNames.size(); ++i) {
        if (wanted != kNames[i]) continue;
        if (static_cast<Isa>(i) <= best) return static_cast<Isa>(i);
        throw std::invalid_argument("isa: this processor has no '" + std::string(wanted) + "'; its best level is '" +
                                    std::string(name(best)) + "'");
    }
    throw std::invalid_argument("isa: '" + std::string(wanted) +
                                "' is not one of auto, portable, avx2, avx512, amx");
}

}  // namespace kvtrove
