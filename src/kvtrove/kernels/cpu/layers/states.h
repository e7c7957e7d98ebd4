// Mixers with a running state: a convolution over the last tokens, and the gated delta rule (arXiv 2412.06464).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtrove {

// One step: tokens starts[s] .. starts[s + 1] - 1 belong to sequence s, whose state is in seat seats[s].
struct StateStep {
    const std::int64_t* starts;
    const std::int64_t* seats;
    std::size_t sequences;
};

// Depthwise: y[t][c] = silu?(sum over j of weight[c][j] * x[t - kernel + 1 + j][c] + bias[c]), x before the step from state.
struct Convolution {
    const void* x;             // [T][width], rows `stride` elements apart
    bool is_bf16;              // x and state
    std::size_t stride, width, kernel;
    const float* weight;       // [kernel][width]
    const float* bias;         // [width], or null
    void* state;               // of seat 0: [kernel - 1][width]; seats are `seat_stride` elements apart
    std::size_t seat_stride;
    float* y;                  // [T][width]
    bool silu;
};
void convolve(const Convolution& c, const StateStep& step);

struct Delta {
    const float* mixed;        // [T][2 * key_heads * k_dim + value_heads * v_dim]: q, k, v
    std::size_t key_heads, value_heads, k_dim, v_dim;
    const float *decay, *dt;   // [value_heads]
    const float* norm;         // [v_dim]
    float eps, unit_eps;
    const void *z, *b, *a;     // rows `stride` elements apart
    bool is_bf16;              // z, b, a and out
    std::size_t stride;
    float* matrix;             // of seat 0: [value_heads][k_dim][v_dim]; seats are `seat_stride` elements apart
    std::size_t seat_stride;
    void* out;                 // [T][value_heads * v_dim]
};
void gated_delta(const Delta& d, const StateStep& step);

}  // namespace kvtrove
