#include "layers/draw.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

struct Token {
    float value, weight;
    std::int32_t id;
};

bool better(const Token& a, const Token& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

constexpr std::size_t kRun = 64;  // tokens that are passed over together

KVTROVE_CLONES float largest_of(const float* x, std::size_t count) {
    float most[kLanes], rest = -std::numeric_limits<float>::infinity();
    std::fill_n(most, kLanes, rest);
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t j = 0; j < kLanes; ++j) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (; i < count; ++i) rest = std::max(rest, x[i]);
    return std::max(rest, *std::max_element(most, most + kLanes));
}

KVTROVE_CLONES double sum_of(const float* x, std::size_t count) {
    double sums[kLanes] = {}, sum = 0;
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t j = 0; j < kLanes; ++j) sums[j] += x[i + j];
    for (; i < count; ++i) sum += x[i];
    for (const double one : sums) sum += one;
    return sum;
}

// The tokens whose x is `least` or more.
std::vector<Token> at_least(float least, const float* x, const float* scaled, const float* weights, std::size_t size) {
    std::vector<Token> found;
    for (std::size_t first = 0; first < size; first += kRun) {
        const std::size_t end = std::min(size, first + kRun);
        if (largest_of(x + first, end - first) < least) continue;
        for (std::size_t i = first; i < end; ++i)
            if (x[i] >= least) found.push_back({scaled[i], weights[i], static_cast<std::int32_t>(i)});
    }
    return found;
}

// The k-th largest of the largest of all runs: k tokens are no smaller, and few others are.
std::vector<Token> best(std::size_t k, const float* scaled, const float* weights, std::size_t size) {
    std::vector<float> most;
    for (std::size_t first = 0; first < size; first += kRun)
        most.push_back(largest_of(scaled + first, std::min(size - first, kRun)));
    float least = std::numeric_limits<float>::lowest();
    if (k <= most.size()) {
        std::nth_element(most.begin(), most.begin() + static_cast<std::ptrdiff_t>(k - 1), most.end(), std::greater<>());
        least = std::max(least, most[k - 1]);
    }
    std::vector<Token> tokens = at_least(least, scaled, scaled, weights, size);
    if (tokens.size() <= k) return tokens;
    std::nth_element(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(k), tokens.end(), better);
    tokens.resize(k);
    return tokens;
}

double mass_of(std::vector<Token>::const_iterator begin, std::vector<Token>::const_iterator end) {
    double mass = 0;
    for (; begin != end; ++begin) mass += begin->weight;
    return mass;
}

// Leaves the best tokens until they hold `mass`: half of those in question are looked at, then half of one half.
void keep_mass(std::vector<Token>& tokens, double mass) {
    constexpr std::ptrdiff_t kFew = 16;
    auto begin = tokens.begin(), end = tokens.end();
    double before = 0;
    while (end - begin > kFew) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, better);
        const double half = mass_of(begin, middle);
        if (before + half < mass) before += half, begin = middle;
        else end = middle;
    }
    std::sort(begin, end, better);
    for (; begin != end && before < mass; ++begin) before += begin->weight;
    tokens.erase(begin, tokens.end());
}

void limit_row(const float* scaled, float* weights, std::size_t size, std::size_t top_k, double top_p) {
    std::vector<Token> tokens;
    if (top_k < size) {
        tokens = best(top_k, scaled, weights, size);
        if (top_p < 1) keep_mass(tokens, top_p * mass_of(tokens.begin(), tokens.end()));
    } else {
        // what is lighter than this holds less than 1 - top_p, all together
        const double mass = sum_of(weights, size), light = (1 - top_p) * mass / static_cast<double>(size);
        tokens = at_least(static_cast<float>(light * (1 - 1e-6)), weights, scaled, weights, size);
        keep_mass(tokens, top_p * mass);
    }
    std::fill_n(weights, size, 0.0f);
    for (const Token& token : tokens) weights[token.id] = token.weight;
}

}  // namespace

void limit(const Limits& limits) {
    const std::size_t size = limits.size;
    parallel(limits.rows, limits.rows > 1 ? max_threads() : 1, [&](std::size_t row, std::size_t) {
        const auto top_k = static_cast<std::size_t>(limits.top_k[row]);
        const double top_p = limits.top_p[row];
        if (top_k >= size && top_p >= 1) return;
        limit_row(limits.scaled + row * size, limits.weights + row * size, size, top_k, top_p);
    });
}

void race(const Race& race, std::size_t most, std::int32_t* candidates, std::int32_t* counts) {
    parallel(race.draws, race.draws > 1 ? max_threads() : 1, [&](std::size_t draw, std::size_t) {
        run_draw(race, draw, most, candidates + draw * most, counts + draw);
    });
}

}  // namespace kvtrove
