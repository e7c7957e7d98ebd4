// Runs the attention kernels of the narrowest and the widest level on small random steps, over memory that is exactly as large
// as it must be. The widest is built with address and undefined-behaviour sanitizers by test_attention_sanitized.py. Prints per
// pair of formats and level how far results were from those of the portable one at most, and in the end how many steps took
// no memory when they came again.
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "allocations.h"
#include "attention/codecs/convert.h"
#include "attention/work.h"
#include "other_levels.h"

using namespace kvtrove;
using namespace kvtrove::attention;

namespace {

constexpr Isa kLevels[] = {Isa::portable, Isa::amx};

std::mt19937 generator(7);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<float> numbers(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(draw(-1000, 1000)) / 500;
    return values;
}

using Distances = std::array<float, 4>;  // of each level

// A form of keys or values.
struct Form {
    const char* name;
    Element stored;
    bool channels = false;

    bool is_sealed() const { return channels || stored == Element::int2; }
};

// Any codes, and scales and zeros between 1/16 and 1/8.
void seal(std::vector<std::uint8_t>& plane, bool numbers) {
    for (std::size_t i = 0; i < plane.size(); ++i) plane[i] = static_cast<std::uint8_t>(numbers && i % 2 ? 0x2C : draw(0, 255));
}

// Sequences with `computed` and `fresh` tokens each; all are stored by the kernel, or sealed, then the fresh ones attend.
// Returns whether steps that came again took no memory.
bool measure(const Form& of_keys, const Form& of_values, Distances& distances) {
    Layer layer;
    layer.k.stored = of_keys.stored, layer.v.stored = of_values.stored, layer.k.channels = of_keys.channels;
    layer.k.tiled = draw(0, 1), layer.v.tiled = draw(0, 1);
    for (Side* side : {&layer.k, &layer.v})
        if (side->stored >= Element::float8) side->tiled = true, side->turned = side->stored == Element::int4 && !side->channels;
    layer.kv_heads = draw(1, 2), layer.num_heads = layer.kv_heads * draw(1, 7);
    layer.k.dim = 8 * draw(1, 4), layer.v.dim = 8 * draw(1, 4);
    if (of_keys.stored == Element::int2) layer.k.dim = 16 * draw(1, 4);
    if (of_values.stored == Element::int2) layer.v.dim = 64 * draw(1, 2);
    const std::vector<float> logits = numbers(layer.num_heads);
    if (draw(0, 1)) layer.sink_logits = logits.data();
    layer.block_size = layer.k.tiled || layer.v.tiled ? 16 * draw(1, 2) : draw(1, 20);
    layer.softcap = static_cast<float>(draw(0, 1)), layer.scale = 0.3f;
    if (draw(0, 1)) layer.reach = {draw(0, 9), draw(1, 40), 0};
    const std::int64_t computed = draw(0, 600), fresh = draw(1, 20), total = computed + fresh, sequences = 2;
    const std::int64_t width = (total + layer.block_size - 1) / layer.block_size;
    layer.num_blocks = sequences * width;
    std::vector<std::int32_t> table(layer.num_blocks);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(table.size() - 1 - i);

    const std::size_t vectors = static_cast<std::size_t>(layer.kv_heads) * layer.block_size;
    std::vector<std::vector<std::uint8_t>> planes;
    const auto add_plane = [&](Plane& plane, std::size_t bytes) {
        planes.emplace_back(bytes * layer.num_blocks, std::uint8_t{0xFF});  // NaN
        plane = {planes.back().data(), static_cast<std::ptrdiff_t>(bytes)};
    };
    Layer writable = layer;  // sides that are sealed take what is stored elsewhere
    planes.reserve(10);
    for (Side* side : {&layer.k, &layer.v}) {
        const bool keys = side == &layer.k, sealed = (keys ? of_keys : of_values).is_sealed();
        const std::size_t shared = side->channels ? static_cast<std::size_t>(layer.kv_heads) * side->dim : vectors;
        const auto add = [&](Plane& plane, std::size_t bytes, bool numbers) {
            add_plane(plane, bytes);
            if (sealed) seal(planes.back(), numbers);
        };
        add(side->data, vectors * side->vector_bytes(), false);
        if (side->stored >= Element::int8) add(side->scale, shared * 2, true);
        if (side->stored >= Element::int4) add(side->zero, shared * 2, true);
        Side& written = keys ? writable.k : writable.v;
        written = *side;
        if (!sealed) continue;
        written.stored = Element::float32, written.channels = written.tiled = false;
        add_plane(written.data, vectors * written.vector_bytes());
    }
    writable.num_blocks = layer.num_blocks;
    const bool selects = !layer.reach.window && layer.block_size % kTile == 0 && !of_keys.is_sealed() && draw(0, 1);
    if (selects) {
        add_plane(layer.select.bounds, std::size_t{4} * layer.kv_heads * layer.k.dim);
        layer.select.least = draw(0, 9), layer.select.part = draw(0, 3);
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
    const auto rows = [&](std::vector<float>& values, int elements) {
        return Rows{reinterpret_cast<std::uint8_t*>(values.data()), elements * 4, Element::float32};
    };
    std::vector<std::int64_t> all_slots, new_slots;
    const Batch everything = batch_of(0, total, all_slots), step = batch_of(computed, fresh, new_slots);
    const int keys = layer.kv_heads * layer.k.dim, values = layer.kv_heads * layer.v.dim;
    const int queries = layer.num_heads * layer.k.dim, results = layer.num_heads * layer.v.dim;
    auto k = numbers(2 * total * keys), v = numbers(2 * total * values);
    check(layer, everything);
    store(writable, everything, rows(k, keys), rows(v, values), 2);
    if (selects) summarise(layer, everything, 2);

    auto q = numbers(2 * fresh * queries);
    std::vector<float> first, lse(2 * fresh * layer.num_heads);
    bool steady = true;
    for (const Isa level : kLevels) {
        for (int threads = 1; threads <= 2; ++threads) {
            Scratch scratch;
            std::vector<float> out(2 * fresh * results, std::numeric_limits<float>::quiet_NaN());
            long taken = 0;
            for (int round = 0; round < 2; ++round) {
                taken = allocations;
                attend(layer, step, rows(q, queries), rows(out, results), lse.data(), scratch, threads,
                       level);
            }
            steady = steady && allocations == taken;
            if (first.empty()) first = out;
            for (std::size_t i = 0; i < out.size(); ++i) {
                const float far = std::fabs(out[i] - first[i]);
                float& most = distances[static_cast<int>(level)];
                if (!(far <= most)) most = far;  // a NaN as well, for good
            }
        }
    }
    return steady;
}

}  // namespace

int main() {
    int steady = 0;
    const auto compare = [&](const Form& k, const Form& v) {
        Distances distances{};
        for (int i = 0; i < 4; ++i) steady += measure(k, v, distances);
        for (const Isa level : kLevels)
            std::printf("%s %s %s %g\n", k.name, v.name, std::string(name(level)).c_str(), distances[static_cast<int>(level)]);
    };
    const std::initializer_list<Form> all = {{"float32", Element::float32}, {"float16", Element::float16},
                                             {"bfloat16", Element::bfloat16}, {"int8", Element::int8},
                                             {"float8", Element::float8}, {"int4", Element::int4}};
    for (const Form& k : all)
        for (const Form& v : all) compare(k, v);
    const Form two{"codes2", Element::int2}, two_by_channel{"channels2", Element::int2, true};
    compare(two, two);
    compare(two_by_channel, two);
    compare(two_by_channel, {"bfloat16", Element::bfloat16});
    compare({"channels4", Element::int4, true}, {"int8", Element::int8});
    std::printf("steady %d\n", steady);
}
