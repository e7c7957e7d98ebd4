// Mixers with a running state: a convolution over the last tokens, the gated delta rule (arXiv 2412.06464), and Mamba2
// (arXiv 2405.21060).
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

// What a mixer reads and writes in a step: rows of x `stride` elements apart, its result [T][...] without gaps, and the states
// of seat 0, seats `conv_stride` and `matrix_stride` elements apart. is_bf16: x, the states of convolutions, and results.
struct Mixed {
    const void* x;
    bool is_bf16;
    std::size_t stride;
    void* conv;
    std::size_t conv_stride;
    float* matrix;
    std::size_t matrix_stride;
    void* out;
};

// A depthwise convolution: y[t][c] = silu?(sum over j of weight[j][c] * x[t - kernel + 1 + j][c] + bias[c]), x before the step
// from its state [kernel - 1][width].
struct Taps {
    const float* weight;  // [kernel][width]
    const float* bias;    // [width], or null
    std::size_t width, kernel;
    bool silu;
};

// y: float32 [T][width].
void convolve(const Taps& taps, const Mixed& step_of, float* y, const StateStep& step);

// Gated DeltaNet from its projections on: x is q | k | v | z | b | a, the result what its heads read, normed and gated.
struct Delta {
    Taps taps;                // of q, k and v
    std::size_t key_heads, value_heads, k_dim, v_dim;
    const float *decay, *dt;  // [value_heads]
    const float* norm;        // [v_dim]
    float eps, unit_eps;
};
void mix(const Delta& delta, const Mixed& mixed, const StateStep& step);

// Mamba2 from its projections on: x is z | x, B, C | dt, the result normed in each group and gated.
struct Mamba {
    Taps taps;                       // of x, B and C
    std::size_t heads, head_dim, state, groups;
    const float *decay, *skip, *dt;  // [heads]
    const float* norm;               // [heads * head_dim]
    float eps, shortest, longest;    // of time steps
};
// workspace: [T][taps.width].
void mix(const Mamba& mamba, const Mixed& mixed, const StateStep& step, float* workspace);

// Threads worth waking for so many numbers of states.
std::size_t state_threads(std::size_t elements);

}  // namespace kvtrove
