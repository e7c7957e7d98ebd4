// What a decoder layer does between its attention and that of the next layer, in one call: with one row, calls from Python
// would take a quarter of the step; with many, what lies between two products would be hundreds of megabytes.
//
//   mixed ─ o ─(norm)─┬─ + ─ norm ─ gate, up ─ silu ─ down ─(norm)─ + ─┬─ norm ─ next
//   x ────────────────┘└───────────────────────────────────────────────┘└── x       next: the projections of the next layer
//
// (norm): only with sandwich norms (Gemma), where gelu may take the place of silu. Without an MLP, for a layer of another
// kind (a mixture of experts), it ends with the norm behind the first sum.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "layers/norms.h"
#include "linear/linear.h"

namespace kvtrove {

struct Matrix {
    const PackedWeights* weights = nullptr;
    const float* bias = nullptr;  // or none
};

struct NormWeight {
    const void* weight = nullptr;
    float eps = 0;
    bool wide = false;  // as in Norm
};

struct Between {
    Matrix o, gate_up, down, next;  // gate_up, down: none without an MLP. next: none where another part comes
    NormWeight norm, next_norm;
    NormWeight o_norm, down_norm;  // of what is added to x; no weight: none
    bool gelu = false;             // its tanh form, in place of silu

    // Elements of `workspace` for so many rows.
    std::size_t workspace(std::size_t rows) const {
        const std::size_t inner = down.weights ? (gates() ? 1 : 3) * down.weights->inputs() : 0;
        return std::min(rows, o.weights->rows_at_once()) * (2 * o.weights->outputs() + inner);
    }
    // gate_up and its activation are one product.
    bool gates() const { return !gelu && gate_up.weights->gates(); }
    std::size_t outputs() const { return next.weights ? next.weights->outputs() : o.weights->outputs(); }
    // Throws std::invalid_argument when the shapes do not follow from one another.
    void check() const;
};

// x [rows, hidden] is updated in place. mixed: [rows, inputs of o]. out: [rows, outputs()]. All of one type, without gaps.
void run(const Between& layer, Float type, std::size_t rows, std::uint8_t* x, const std::uint8_t* mixed,
         std::uint8_t* workspace, std::uint8_t* out);

}  // namespace kvtrove
