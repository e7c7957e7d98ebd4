// Runs the attention kernels of every level that the machine has on small random steps, over memory that is exactly as
// large as it must be. Built with address and undefined-behaviour sanitizers by test_attention_sanitized.py. Prints per
// format, layout and level how far results were from those of the portable one at most, and in the end how many steps took
// no memory when they came again.
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "allocations.h"
#include "attention/convert.h"
#include "attention/work.h"

using namespace kvtrove;
using namespace kvtrove::attention;

namespace {

std::mt19937 generator(7);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<float> numbers(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(draw(-1000, 1000)) / 500;
    return values;
}

using Distances = std::array<float, 4>;  // of each level

// Sequences with `computed` and `fresh` tokens each; all are stored by the kernel, then the fresh ones attend. Returns
// whether steps that came again took no memory.
bool measure(Element stored, bool tiled, Distances& distances) {
    Layer layer;
    layer.stored = stored, layer.tiled = tiled;
    layer.kv_heads = draw(1, 2), layer.num_heads = layer.kv_heads * draw(1, 7), layer.head_dim = 8 * draw(1, 3);
    layer.block_size = tiled ? 16 * draw(1, 2) : draw(1, 20);
    layer.softcap = static_cast<float>(draw(0, 1)), layer.scale = 0.3f;
    if (draw(0, 1)) layer.reach = {draw(0, 9), draw(1, 40), 0};
    const std::int64_t computed = draw(0, 600), fresh = draw(1, 20), total = computed + fresh, sequences = 2;
    const std::int64_t width = (total + layer.block_size - 1) / layer.block_size;
    layer.num_blocks = sequences * width;
    std::vector<std::int32_t> table(layer.num_blocks);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(table.size() - 1 - i);

    const std::size_t vectors = static_cast<std::size_t>(layer.kv_heads) * layer.block_size;
    const std::size_t plane = vectors * layer.head_dim * bytes_of(stored), scales = vectors * 2;
    std::vector<std::uint8_t> planes[4];
    Plane* targets[4] = {&layer.k, &layer.v, &layer.k_scale, &layer.v_scale};
    for (int i = 0; i < (stored == Element::int8 ? 4 : 2); ++i) {
        const std::size_t bytes = i < 2 ? plane : scales;
        planes[i].assign(bytes * layer.num_blocks, 0xFF);  // NaN
        *targets[i] = {planes[i].data(), static_cast<std::ptrdiff_t>(bytes)};
    }

    const auto batch_of = [&](std::int64_t start, std::int64_t count, std::vector<std::int64_t>& slots) {
        Batch batch;
        batch.query_start = {0, count, 2 * count}, batch.start = {start, start};
        batch.table = table.data(), batch.table_width = width;
        for (int s = 0; s < 2; ++s)
            for (std::int64_t p = start; p < start + count; ++p)
                slots.push_back(table[s * width + p / layer.block_size] * std::int64_t{layer.block_size} +
                                p % layer.block_size);
        batch.slots = slots.data();
        return batch;
    };
    const auto rows = [&](std::vector<float>& values, int heads) {
        return Rows{reinterpret_cast<std::uint8_t*>(values.data()), heads * layer.head_dim * 4, Element::float32};
    };
    std::vector<std::int64_t> all_slots, new_slots;
    const Batch everything = batch_of(0, total, all_slots), step = batch_of(computed, fresh, new_slots);
    auto k = numbers(2 * total * layer.kv_heads * layer.head_dim), v = numbers(k.size());
    check(layer, everything);
    store(layer, everything, rows(k, layer.kv_heads), rows(v, layer.kv_heads), 2);

    auto q = numbers(2 * fresh * layer.num_heads * layer.head_dim);
    std::vector<float> first, lse(2 * fresh * layer.num_heads);
    bool steady = true;
    for (int level = 0; level <= static_cast<int>(detect_isa()); ++level) {
        for (int threads = 1; threads <= 2; ++threads) {
            Scratch scratch;
            std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
            long taken = 0;
            for (int round = 0; round < 2; ++round) {
                taken = allocations;
                attend(layer, step, rows(q, layer.num_heads), rows(out, layer.num_heads), lse.data(), scratch, threads,
                       static_cast<Isa>(level));
            }
            steady = steady && allocations == taken;
            if (first.empty()) first = out;
            for (std::size_t i = 0; i < out.size(); ++i) {
                const float far = std::fabs(out[i] - first[i]);
                if (!(far <= distances[level])) distances[level] = far;  // a NaN as well, for good
            }
        }
    }
    return steady;
}

}  // namespace

int main() {
    const char* const names[] = {"float32", "float16", "bfloat16", "int8"};
    int steady = 0;
    for (const Element stored : {Element::float32, Element::float16, Element::bfloat16, Element::int8})
        for (const bool tiled : {false, true}) {
            Distances distances{};
            for (int i = 0; i < 15; ++i) steady += measure(stored, tiled, distances);
            for (int level = 0; level <= static_cast<int>(detect_isa()); ++level)
                std::printf("%s %s %s %g\n", names[static_cast<int>(stored)], tiled ? "tiled" : "plain",
                            std::string(name(static_cast<Isa>(level))).c_str(), distances[level]);
        }
    std::printf("steady %d\n", steady);
}
