#include "layers/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/threads.h"

#if defined(__x86_64__) && defined(__gnu_linux__)
#define KVTROVE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define KVTROVE_CLONES
#endif

namespace kvtrove {

namespace {

constexpr std::size_t kBlock = 512, kLanes = 16;
constexpr double kSlack = 1 + 1e-4;  // far beyond the rounding of float32

// times[i] = u / weight of token from + i, where u in (0, 1) has the bits of `token_bits` (runner/random.py), and the
// least of them. Behind `count` times are infinite.
KVTROVE_CLONES float run_block(std::uint32_t from, std::uint32_t count, const std::uint32_t* key, const float* weights,
                               float* times) {
    const std::uint32_t key0 = key[0], key1 = key[1];
    for (std::uint32_t i = 0; i < count; ++i) {
        std::uint32_t x = ((from + i) ^ key0) * 0x7FEB352Du;
        x = ((x ^ (x >> 15)) + key1) * 0x846CA68Bu;
        x = (x ^ (x >> 16)) * 0x7FEB352Du;
        times[i] = (static_cast<float>(static_cast<std::int32_t>(x >> 1)) + 0.5f) * 0x1p-31f / weights[i];
    }
    for (std::size_t i = count; i < kBlock; ++i) times[i] = std::numeric_limits<float>::infinity();
    float least[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) least[j] = times[j];
    for (std::size_t i = kLanes; i < kBlock; i += kLanes) {
        for (std::size_t j = 0; j < kLanes; ++j) least[j] = times[i + j] < least[j] ? times[i + j] : least[j];
    }
    return *std::min_element(least, least + kLanes);
}

void run_draw(const Race& race, std::size_t draw, std::size_t most, std::int32_t* candidates, std::int32_t* count) {
    const float* weights = race.weights + static_cast<std::size_t>(race.places[draw]) * race.size;
    const std::uint32_t* key = race.keys + 4 * draw;
    const std::size_t blocks = (race.size + kBlock - 1) / kBlock;
    float times[kBlock];
    const auto run = [&](std::size_t block) {
        const std::size_t first = block * kBlock;
        const auto count = static_cast<std::uint32_t>(std::min(kBlock, race.size - first));
        return run_block(static_cast<std::uint32_t>(first), count, key, weights + first, times);
    };
    std::vector<float> least(blocks);
    for (std::size_t block = 0; block < blocks; ++block) least[block] = run(block);
    const auto leader = static_cast<std::size_t>(std::min_element(least.begin(), least.end()) - least.begin());
    const double time = run(leader);
    const double weight = weights[leader * kBlock + static_cast<std::size_t>(std::find(times, times + kBlock, least[leader]) - times)];
    const auto bound = static_cast<float>(kSlack * -std::log1p(-time * weight) / weight);
    *count = 0;
    for (std::size_t block = 0; block < blocks; ++block) {
        if (least[block] > bound) continue;
        run(block);
        for (std::size_t i = 0; i < kBlock; ++i) {
            if (times[i] > bound) continue;
            if (static_cast<std::size_t>(*count) < most) candidates[*count] = static_cast<std::int32_t>(block * kBlock + i);
            ++*count;
        }
    }
}

}  // namespace

void race(const Race& race, std::size_t most, std::int32_t* candidates, std::int32_t* counts) {
    parallel(race.draws, race.draws > 1 ? max_threads() : 1, [&](std::size_t draw, std::size_t) {
        run_draw(race, draw, most, candidates + draw * most, counts + draw);
    });
}

}  // namespace kvtrove
