// Linear layers at two levels of instructions, without Python: how far apart their results are, and how fast each is. For
// machines where the package is not installed, and for emulators (argument "small").
//
//   cd src/kvtrove/kernels/cpu && g++ -std=c++17 -O2 -ffp-contract=off -static -I.
//       ../../../../benchmarks/micro/linear_levels.cpp linear/linear.cpp linear/int4.cpp linear/levels/*.cpp common/pages.cpp
//       common/isa.cpp common/threads.cpp -o linear_levels && ./linear_levels
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "common/threads.h"
#include "linear/level.h"
#include "linear/linear.h"

using namespace kvtrove;

namespace {

constexpr std::size_t kColdBytes = 256 << 20;  // weights are multiplied in turn until they have so many: none is in a cache

std::vector<float> random(std::size_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Run {
    double seconds;
    std::vector<float> y;
};

// One product: the best of three rounds over all copies.
Run run(const std::vector<std::unique_ptr<PackedWeights>>& copies, const std::vector<float>& x, Float type) {
    const PackedWeights& first = *copies.front();
    const std::size_t rows = x.size() / first.inputs(), count = rows * first.outputs();
    std::vector<std::uint16_t> narrow(x.size()), rounded(count);
    for (std::size_t i = 0; i < x.size(); ++i) narrow[i] = bfloat16_of_float(x[i]);
    Run result{1e9, std::vector<float>(count)};
    const bool is_bf16 = type == Float::bf16;
    const void* from = is_bf16 ? static_cast<const void*>(narrow.data()) : x.data();
    void* to = is_bf16 ? static_cast<void*>(rounded.data()) : result.y.data();
    for (int round = 0; round < 3; ++round) {
        const double start = seconds();
        for (const auto& weights : copies) weights->multiply(from, to, type, rows, nullptr);
        result.seconds = std::min(result.seconds, (seconds() - start) / static_cast<double>(copies.size()));
    }
    for (std::size_t i = 0; is_bf16 && i < count; ++i) result.y[i] = float_of_bfloat16(rounded[i]);
    return result;
}

double read_bandwidth() {
    std::vector<std::uint64_t> memory(kColdBytes / 8, 1);
    double best = 1e9;
    for (int round = 0; round < 3; ++round) {
        std::atomic<std::uint64_t> sum{0};
        const double start = seconds();
        parallel_ranges(memory.size() / 8, max_threads(), [&](std::size_t begin, std::size_t end) {
            std::uint64_t own = 0;
            for (std::size_t i = begin; i < end; ++i) own += memory[8 * i];
            sum += own;
        });
        best = std::min(best, seconds() - start + (sum == 0 ? 1 : 0));
    }
    return static_cast<double>(kColdBytes) / best;
}

}  // namespace

int main(int count, char** arguments) {
    const bool small = count > 1 && !std::strcmp(arguments[1], "small");
    const Isa best = detect_isa();  // asks Linux for tiles, too
    const std::size_t outputs = small ? 100 : 4864, inputs = small ? 170 : 896;
    std::printf("this machine: %s; a plain read: %.1f GB/s\n", name(best).data(), small ? 0 : read_bandwidth() / 1e9);
    const std::vector<float> values = random(outputs * inputs);
    for (const auto kind : {PackedWeights::Kind::bf16, PackedWeights::Kind::int8}) {
        std::vector<std::unique_ptr<PackedWeights>> copies, portable;
        for (std::size_t bytes = 0; copies.empty() || (!small && bytes < kColdBytes); bytes += copies.back()->nbytes()) {
            copies.push_back(std::make_unique<PackedWeights>(outputs, inputs, kind, best));
            copies.back()->fill(0, {values.data(), Float::f32, outputs, inputs});
        }
        portable.push_back(std::make_unique<PackedWeights>(outputs, inputs, kind, Isa::portable));
        portable.back()->fill(0, {values.data(), Float::f32, outputs, inputs});
        for (const Float type : {Float::bf16, Float::f32}) {
            for (const std::size_t rows : {1, 8, 32, 64, 512, 2048}) {
                if (small && rows > 64) break;
                const std::vector<float> x = random(rows * inputs);
                const Run fast = run(copies, x, type), plain = run(portable, x, type);
                double off = 0, size = 0;
                for (std::size_t i = 0; i < plain.y.size(); ++i) {
                    off = std::max(off, std::fabs(static_cast<double>(fast.y[i]) - plain.y[i]));
                    size = std::max(size, std::fabs(static_cast<double>(plain.y[i])));
                }
                const auto work = 2.0 * static_cast<double>(rows * outputs * inputs);
                std::printf("%s weights, %s x, %4zu rows: %s %8.1f GB/s %8.1f GFLOP/s; portable %6.1f GFLOP/s; apart %.1e\n",
                            kind == PackedWeights::Kind::bf16 ? "bf16" : "int8", type == Float::bf16 ? "bf16" : "f32 ", rows,
                            name(best).data(), static_cast<double>(copies[0]->nbytes()) / fast.seconds / 1e9,
                            work / fast.seconds / 1e9, work / plain.seconds / 1e9, off / size);
            }
        }
    }
}
