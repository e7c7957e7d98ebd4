// What a decoder layer does between its attention and that of the next layer, in one call: with one row, calls from Python
// would take a quarter of the step.
//
//   mixed ─ o ─┬─ + ─ norm ─ gate, up ─ silu ─ down ─ + ─┬─ norm ─ next
//   x ─────────┘└────────────────────────────────────────┘└── x                 next: the projections of the next layer
#pragma once

#include <cstddef>

#include "linear.h"
#include "rows.h"

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
    Matrix o, gate_up, down, next;  // next: none behind the last layer
    NormWeight norm, next_norm;

    // Elements of `workspace` per row.
    std::size_t workspace() const { return 2 * o.weights->outputs() + 3 * down.weights->inputs(); }
    std::size_t outputs() const { return next.weights ? next.weights->outputs() : o.weights->outputs(); }
    // Throws std::invalid_argument when the shapes do not follow from one another.
    void check() const;
};

// x [rows, hidden] is updated in place. mixed: [rows, inputs of o]. out: [rows, outputs()]. All of one type, without gaps.
void run(const Between& layer, Float type, std::size_t rows, void* x, const void* mixed, void* workspace, void* out);

}  // namespace kvtrove
