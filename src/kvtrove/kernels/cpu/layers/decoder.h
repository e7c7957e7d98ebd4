// A range of a decoder's layers in one call, from the first layer's projections to what its last `Between` gives: between
// layers, Python would take a tenth of a short step.
//
//   projections ─ norms of heads ─ rotation, cache, attention ─ Between ─┬─ projections of the next layer ─ ...
//                                                                        └─ x
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/attention.h"
#include "layers/post_attention.h"

namespace kvtrove {

// parts: as many shares of the layer's heads, each of which `attention` describes, read tables of their own: those of the
// batches `group`, group + 1, ... of a step.
struct DecoderLayer {
    const attention::Layer* attention;
    const Between* between;
    NormWeight q_norm, k_norm;  // of every head; no weight: none
    std::size_t group, rope;    // which of a step's batches and rotations
    bool stores;                // keys and values follow the queries among its projections
    std::size_t parts = 1;

    std::size_t num_heads() const { return parts * attention->num_heads; }
    std::size_t kv_heads() const { return parts * attention->kv_heads; }
    std::size_t queries() const { return num_heads() * attention->k.dim; }
    std::size_t keys() const { return stores ? kv_heads() * attention->k.dim : 0; }
    std::size_t values() const { return stores ? kv_heads() * attention->v.dim : 0; }
    std::size_t projected() const { return queries() + keys() + values(); }
    std::size_t mixed() const { return num_heads() * attention->v.dim; }
};

struct Decoder {
    std::vector<DecoderLayer> layers;
    std::size_t mixed = 0, projected = 0;  // widest of all layers
    std::size_t batches = 0, ropes = 0;    // that a step must have

    // Throws std::invalid_argument when `layer` does not follow from the one before it.
    void add(const DecoderLayer& layer);
    // Elements of `workspace` for so many rows.
    std::size_t workspace(std::size_t rows) const;
    std::size_t outputs() const { return layers.back().between->outputs(); }
};

// One step. batches: of every group of layers. ropes: every rotation that a layer names.
struct DecoderStep {
    Float type;
    std::size_t rows;
    std::vector<const attention::Batch*> batches;
    std::vector<attention::Rope> ropes;
};

// How attention computes.
struct AttentionMeans {
    attention::Scratch& scratch;
    int num_threads;
    Isa isa;
};

// x [rows, hidden] is updated in place. projected: of the first layer, [rows, projected()], overwritten. out: [rows,
// outputs()]. All of one type, without gaps. Every batch was checked for its layers.
void run(const Decoder& decoder, const DecoderStep& step, const AttentionMeans& means, std::uint8_t* x,
         std::uint8_t* projected, std::uint8_t* workspace, std::uint8_t* out);

}  // namespace kvtrove
