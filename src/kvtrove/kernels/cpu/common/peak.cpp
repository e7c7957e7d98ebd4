#include "common/peak.h"

#include "common/threads.h"

#if defined(__x86_64__)
#include "common/amx_tiles.h"
#endif

namespace kvtrove {

namespace {

constexpr std::size_t kPartsPerThread = 8;

#if defined(__x86_64__)
// Sums that are independent of each other, more than one instruction takes cycles.
constexpr int kSums = 12;
constexpr std::size_t kVectorRounds = 16;  // so that rounds of all levels take about as long

#define KVTROVE_FMAS(bytes, target_of_level)                                                             \
    typedef float Floats __attribute__((vector_size(bytes)));                                            \
    __attribute__((target(target_of_level))) double run(std::size_t rounds) {                            \
        Floats sums[kSums] = {}, factor = Floats{} + 0.5f;                                               \
        rounds *= kVectorRounds;                                                                         \
        for (std::size_t i = 0; i < rounds; ++i) {                                                       \
            _Pragma("GCC unroll 12") for (int s = 0; s < kSums; ++s) {                                   \
                sums[s] = sums[s] * factor + factor;                                                     \
                asm volatile("" : "+v"(sums[s]));                                                        \
            }                                                                                            \
        }                                                                                                \
        return 2.0 * kSums * (bytes / sizeof(float)) * static_cast<double>(rounds);                      \
    }

namespace avx2 {
KVTROVE_FMAS(32, "avx2,fma")
}
namespace avx512 {
KVTROVE_FMAS(64, "avx512f,avx512bw,avx512dq,avx512vl,fma")
}

namespace amx {
double run(std::size_t rounds) {
    tiles::Shapes shapes;
    for (int tile = 0; tile < tiles::kTiles; ++tile) shapes.set(tile, tiles::kRows);
    tiles::configure(shapes);
    for (std::size_t i = 0; i < rounds; ++i) {
        tiles::dot_bf16<0, 4, 6>(), tiles::dot_bf16<1, 4, 7>(), tiles::dot_bf16<2, 5, 6>(), tiles::dot_bf16<3, 5, 7>();
    }
    tiles::release();
    return 4 * 2.0 * 16 * 16 * 32 * static_cast<double>(rounds);
}
}  // namespace amx
#endif

using Run = double (*)(std::size_t rounds);

Run run_of([[maybe_unused]] Isa level) {
#if defined(__x86_64__)
    if (level == Isa::amx) return amx::run;
    if (level == Isa::avx512) return avx512::run;
    if (level == Isa::avx2) return avx2::run;
#endif
    return nullptr;
}

}  // namespace

double run_at_peak(Isa level, std::size_t rounds) {
    const Run run = run_of(level);
    if (!run) return 0;
    const std::size_t threads = max_threads(), parts = threads * kPartsPerThread;
    double operations = 0;
    parallel(parts, threads, [&](std::size_t part, std::size_t) {
        const double done = run(rounds / kPartsPerThread + 1);
        if (part == 0) operations = done;
    });
    return operations * static_cast<double>(parts);
}

}  // namespace kvtrove
