#include "layers/decoder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/threads.h"

namespace kvtrove {

namespace {

constexpr std::size_t kWorthThreads = 1 << 16;  // numbers to norm before other threads are woken

using attention::Element;
using attention::Rows;

// Every head by itself, in place.
void norm_heads(const NormWeight& norm, Float type, std::size_t rows, const Rows& x, std::size_t heads, std::size_t dim) {
    if (!norm.weight) return;
    const std::size_t threads = rows * heads * dim > kWorthThreads ? max_threads() : 1;
    parallel_ranges(rows, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t row = begin; row < end; ++row) {
            auto* at = x.data + static_cast<std::ptrdiff_t>(row) * x.stride;
            rms_norm({type, heads, dim, norm.weight, norm.eps, norm.wide}, at, at);
        }
    });
}

}  // namespace

void Decoder::add(const DecoderLayer& layer) {
    const bool fits = layer.between->o.weights->inputs() == layer.mixed() &&
                      (layers.empty() || layers.back().between->outputs() == layer.projected()) &&
                      (layers.empty() || layers.back().between->next.weights);
    if (!fits) throw std::invalid_argument("layer " + std::to_string(layers.size()) + " does not follow from what is before");
    layers.push_back(layer);
    mixed = std::max(mixed, layer.mixed()), projected = std::max(projected, layer.projected());
    batches = std::max(batches, layer.group + layer.parts), ropes = std::max(ropes, layer.rope + 1);
}

std::size_t Decoder::workspace(std::size_t rows) const {
    std::size_t between = 0;
    for (const DecoderLayer& layer : layers) between = std::max(between, layer.between->workspace(rows));
    return between + rows * (mixed + projected);
}

void run(const Decoder& decoder, const DecoderStep& step, const AttentionMeans& means, std::uint8_t* x,
         std::uint8_t* projected, std::uint8_t* workspace, std::uint8_t* out) {
    const std::size_t bytes = bytes_of(step.type);
    const Element element = step.type == Float::f32 ? Element::float32 : Element::bfloat16;
    std::uint8_t *mixed = workspace, *next = mixed + step.rows * decoder.mixed * bytes;
    std::uint8_t* rest = next + step.rows * decoder.projected * bytes;
    for (const DecoderLayer& layer : decoder.layers) {
        const attention::Layer& reads = *layer.attention;
        const auto stride = static_cast<std::ptrdiff_t>(layer.projected() * bytes);
        const auto from = [&](std::size_t first) { return Rows{projected + first * bytes, stride, element}; };
        norm_heads(layer.q_norm, step.type, step.rows, from(0), layer.num_heads(), reads.k.dim);
        if (layer.stores) norm_heads(layer.k_norm, step.type, step.rows, from(layer.queries()), layer.kv_heads(), reads.k.dim);
        const auto part_of = [&](std::size_t part, std::size_t all) { return part * (all / layer.parts); };
        for (std::size_t part = 0; part < layer.parts; ++part) {
            const Rows q = from(part_of(part, layer.queries()));
            const Rows k = layer.stores ? from(layer.queries() + part_of(part, layer.keys())) : Rows{};
            const Rows v = layer.stores ? from(layer.queries() + layer.keys() + part_of(part, layer.values())) : Rows{};
            const Rows result{mixed + part_of(part, layer.mixed()) * bytes, static_cast<std::ptrdiff_t>(layer.mixed() * bytes), element};
            attention::run(reads, *step.batches[layer.group + part], {q, k, v, &step.ropes[layer.rope]}, result, means.scratch,
                           means.num_threads, means.isa);
        }
        run(*layer.between, step.type, step.rows, x, mixed, rest, &layer == &decoder.layers.back() ? out : next);
        projected = next;
    }
}

}  // namespace kvtrove
