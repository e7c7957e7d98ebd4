// Holds the amx level of attention against the portable one, and against itself: a result may depend on nothing but its
// own sequence. Built by test_attention_sanitized.py with KVTROVE_EMULATE_AMX, where every machine runs it; without
// that, it needs a processor with AMX. Prints how many cases were right, or what went wrong first.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attention/codecs/convert.h"
#include "attention/work.h"
#include "other_levels.h"

using namespace kvtrove;
using namespace kvtrove::attention;

namespace {

std::mt19937 generator(11);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

int one_of(std::initializer_list<int> values) { return values.begin()[draw(0, static_cast<int>(values.size()) - 1)]; }

std::vector<float> numbers(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(draw(-1000, 1000)) / 500;
    return values;
}

// k, v: [computed + fresh][kv_heads][dim]. q: [fresh][heads][dim].
struct Sequence {
    std::int64_t computed, fresh;
    std::vector<float> k, v, q;

    std::int64_t total() const { return computed + fresh; }
};

// Per sequence [tokens][heads * dim + heads]: results, then lse.
using Results = std::vector<std::vector<float>>;

// Sequences in an arena of their own, whose blocks lie in random order. Only what some query reads is held: other blocks
// of the table are holes, other slots full of NaN.
struct World {
    Layer layer;
    std::vector<const Sequence*> sequences;
    std::vector<std::vector<std::uint8_t>> planes;
    std::vector<std::int32_t> table;
    std::int64_t width = 0;

    World(const Layer& shape, std::vector<const Sequence*> of) : layer(shape), sequences(std::move(of)) {
        const int size = layer.block_size;
        for (const Sequence* one : sequences) width = std::max(width, (one->total() + size - 1) / size);
        layer.num_blocks = width * static_cast<std::int64_t>(sequences.size());
        const std::size_t vectors = static_cast<std::size_t>(layer.kv_heads) * size;
        const auto add_plane = [&](Plane& plane, std::size_t bytes) {
            planes.emplace_back(bytes * layer.num_blocks, std::uint8_t{0xFF});
            plane = {planes.back().data(), static_cast<std::ptrdiff_t>(bytes)};
        };
        for (Side* side : {&layer.k, &layer.v}) {
            add_plane(side->data, vectors * side->vector_bytes());
            if (side->stored >= Element::int8) add_plane(side->scale, vectors * 2);
            if (side->stored == Element::int4) add_plane(side->zero, vectors * 2);
        }
        std::vector<std::int32_t> order(layer.num_blocks);
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
        std::shuffle(order.begin(), order.end(), generator);
        table.assign(order.size(), -1);
        for (std::size_t s = 0; s < sequences.size(); ++s) hold(s, order);
    }

    void hold(std::size_t s, const std::vector<std::int32_t>& order) {
        const Sequence& one = *sequences[s];
        for (std::int64_t p = 0; p < one.total(); ++p) {
            if (p < layer.reach.first(one.computed) && p >= layer.reach.sinks) continue;
            const std::int64_t at = s * width + p / layer.block_size;
            table[at] = order[at];
            const std::int64_t slot = std::int64_t{order[at]} * layer.block_size + p % layer.block_size;
            Batch batch;
            batch.query_start = {0, 1}, batch.start = {p}, batch.slots = &slot;
            const std::size_t row = static_cast<std::size_t>(layer.kv_heads) * layer.k.dim;
            const auto rows = [&](const std::vector<float>& values) {
                auto* data = reinterpret_cast<std::uint8_t*>(const_cast<float*>(values.data() + p * row));
                return Rows{data, static_cast<std::ptrdiff_t>(row * 4), Element::float32};
            };
            store(layer, batch, rows(one.k), rows(one.v), 1);
        }
    }

    // The results of fresh tokens [from, to) of each sequence.
    Results attend_to(Isa isa, int threads, Element element, std::int64_t from, std::int64_t to) const {
        const std::size_t row = static_cast<std::size_t>(layer.num_heads) * layer.k.dim, bytes = bytes_of(element);
        Batch batch;
        batch.query_start = {0};
        std::vector<float> q;
        for (const Sequence* one : sequences) {
            const std::int64_t first = std::min(from, one->fresh), last = std::min(to, one->fresh);
            q.insert(q.end(), one->q.begin() + first * row, one->q.begin() + last * row);
            batch.query_start.push_back(batch.query_start.back() + last - first);
            batch.start.push_back(one->computed + first);
        }
        Results results(sequences.size());
        if (batch.tokens() == 0) return results;
        const std::vector<std::int64_t> slots(batch.tokens(), 0);
        batch.table = table.data(), batch.table_width = width, batch.slots = slots.data();
        check(layer, batch);
        std::vector<std::uint8_t> queries(q.size() * bytes);
        from_floats(q.data(), element, static_cast<int>(q.size()), queries.data());
        std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN()), lse(batch.tokens() * layer.num_heads);
        Scratch scratch;
        attend(layer, batch, {queries.data(), static_cast<std::ptrdiff_t>(row * bytes), element},
               {reinterpret_cast<std::uint8_t*>(out.data()), static_cast<std::ptrdiff_t>(row * 4), Element::float32},
               lse.data(), scratch, threads, isa);
        for (std::size_t s = 0; s < sequences.size(); ++s)
            for (std::int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
                results[s].insert(results[s].end(), out.begin() + t * row, out.begin() + (t + 1) * row);
                const auto of_token = lse.begin() + t * layer.num_heads;
                results[s].insert(results[s].end(), of_token, of_token + layer.num_heads);
            }
        return results;
    }

    Results attend_to(Isa isa, int threads, Element element) const { return attend_to(isa, threads, element, 0, 1 << 20); }
};

// Largest difference; a NaN anywhere counts as infinite.
float distance(const Results& a, const Results& b) {
    float most = 0;
    for (std::size_t s = 0; s < a.size(); ++s)
        for (std::size_t i = 0; i < a[s].size(); ++i) {
            const float here = std::fabs(a[s][i] - b[s][i]);
            most = here <= most ? most : std::isnan(here) ? std::numeric_limits<float>::infinity() : here;
        }
    return most;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
    Layer layer;
    Element element;  // of q
    std::vector<Sequence> sequences;

    Case(Element k, Element v, bool short_ones) {
        layer.k.stored = k, layer.v.stored = v, layer.k.tiled = layer.v.tiled = true;
        layer.k.turned = k == Element::int4, layer.v.turned = v == Element::int4;
        layer.kv_heads = draw(1, 2), layer.num_heads = layer.kv_heads * one_of({1, 4, 7, 8});
        layer.k.dim = layer.v.dim = v == Element::int4 ? one_of({64, 96, 128}) : one_of({64, 80, 96, 128, 256});
        layer.block_size = one_of({16, 32, 48, 64});
        layer.scale = 0.3f, layer.softcap = static_cast<float>(draw(0, 1) * 3);
        if (draw(0, 1)) layer.reach = {draw(0, 40), draw(1, 200), 0};
        if (draw(0, 5) == 0) layer.num_heads = 33 * layer.kv_heads;
        element = draw(0, 1) ? Element::float32 : Element::bfloat16;
        const std::size_t kv = static_cast<std::size_t>(layer.kv_heads) * layer.k.dim;
        for (int s = draw(1, 3); s > 0; --s) {
            Sequence one{draw(0, 1) ? draw(0, 100) : draw(0, 700), draw(0, 1) ? 1 : draw(2, 18), {}, {}, {}};
            if (short_ones) one.computed = 0, one.fresh = 1;
            one.k = numbers(one.total() * kv), one.v = numbers(one.total() * kv);
            one.q = numbers(one.fresh * layer.num_heads * layer.k.dim);
            sequences.push_back(std::move(one));
        }
    }

    std::vector<const Sequence*> all() const {
        std::vector<const Sequence*> pointers;
        for (const Sequence& one : sequences) pointers.push_back(&one);
        return pointers;
    }
};

// What is wrong with the amx level in a case, or "".
std::string reason(const Case& c, float tolerance) {
    const World world(c.layer, c.all());
    const Results here = world.attend_to(Isa::amx, 1, c.element);
    const float far = distance(here, world.attend_to(Isa::portable, 1, c.element));
    if (!(far <= tolerance)) return "is " + std::to_string(far) + " off";
    if (c.layer.k.stored == Element::int8 && c.layer.v.stored == Element::int8) {
        Layer plain = c.layer;
        plain.k.tiled = plain.v.tiled = false;  // computed on vectors
        const Results vectors = World(plain, c.all()).attend_to(Isa::amx, 1, c.element);
        for (std::size_t s = 0; s < here.size(); ++s)
            if (!same_bits(here[s], vectors[s])) return "differs from the same numbers on vectors";
    }
    const Results threads = world.attend_to(Isa::amx, 3, c.element);
    Results parts = world.attend_to(Isa::amx, 1, c.element, 0, 5);
    const Results rest = world.attend_to(Isa::amx, 1, c.element, 5, 1 << 20);
    for (std::size_t s = 0; s < here.size(); ++s) {
        const World alone(c.layer, {&c.sequences[s]});
        parts[s].insert(parts[s].end(), rest[s].begin(), rest[s].end());
        if (!same_bits(here[s], threads[s])) return "depends on the number of threads";
        if (!same_bits(here[s], parts[s])) return "depends on the chunks of prefill";
        if (!same_bits(here[s], alone.attend_to(Isa::amx, 1, c.element)[0])) return "depends on the batch or its blocks";
    }
    return "";
}

// The bits of all results of the amx level, as one number (FNV-1a).
std::uint64_t bits_of(const Case& c) {
    std::uint64_t hash = 0xcbf29ce484222325;
    for (const std::vector<float>& one : World(c.layer, c.all()).attend_to(Isa::amx, 2, c.element))
        for (const float x : one) hash = (hash ^ bits_of_float(x)) * 0x100000001b3;
    return hash;
}

}  // namespace

// Arguments: how far results may be from those of the portable level, for each pair of keys and values in bf16, int8 and int4,
// and for a single key of bf16. With none, prints the bits of each case: with KVTROVE_EMULATE_AMX and without it they are the same.
int main(int count, char** allowed) {
#if !defined(KVTROVE_EMULATE_AMX)
    if (detect_isa() < Isa::amx) return std::puts("this processor has no AMX"), 2;
#endif
    const Element all[] = {Element::bfloat16, Element::int8, Element::int4};
    const char* const names[] = {"bf16", "int8", "int4"};
    constexpr int kPairs = 9, kCases = 3 * kPairs;
    const auto pair_of = [&](int i) { return std::pair(i % kPairs / 3, i % 3); };
    for (int i = 0; count == 1 && i < kCases; ++i) {
        const auto [k, v] = pair_of(i);
        const Case c(all[k], all[v], i >= 2 * kPairs);
        std::printf("%016llx\n", static_cast<unsigned long long>(bits_of(c)));
    }
    if (count == 1) return 0;
    int right = 0;
    for (int i = 0; i < kCases; ++i) {
        const auto [k, v] = pair_of(i);
        const bool short_ones = i == kPairs;  // one key: its weight is 1, and its score stands in lse as it is
        const Case c(all[k], all[v], short_ones);
        const std::string wrong = reason(c, std::strtof(allowed[short_ones ? kPairs + 1 : 1 + i % kPairs], nullptr));
        right += wrong.empty();
        if (wrong.empty()) continue;
        std::printf("case %d: keys of %s, values of %s, dim %d, group %d, blocks of %d, window %d, sinks %d, q in %s: %s\n", i,
                    names[k], names[v], c.layer.k.dim, c.layer.group(),
                    c.layer.block_size, static_cast<int>(c.layer.reach.window), static_cast<int>(c.layer.reach.sinks),
                    c.element == Element::bfloat16 ? "bf16" : "float32", wrong.c_str());
    }
    std::printf("%d\n", right);
}
