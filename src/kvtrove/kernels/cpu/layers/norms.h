// What happens to hidden states between two matrix products, each row in one pass: RMSNorm (arXiv 1910.07467), with the
// residual added on the way, and the gates of SwiGLU and GeGLU (arXiv 2002.05202).
//
// Arithmetic is float32; bf16 is rounded wherever torch, operation by operation, would round it. A row's bits depend on
// nothing but the row.
#pragma once

#include <cstddef>

#include "linear/linear.h"

namespace kvtrove {

// x, y [rows, size] and weight [size] have one type, but `wide` means float32 weights and a result that is rounded once.
struct Norm {
    Float type;
    std::size_t rows, size;
    const void* weight;
    float eps;
    bool wide;
};

// y = x / sqrt(mean(x^2) + eps) * weight for every row. y may be x.
void rms_norm(const Norm& norm, const void* x, void* y);

// x += added, then y = the norm of x.
void add_rms_norm(const Norm& norm, void* x, const void* added, void* y);

// y [rows, size] = silu(gate) * up. gate, up: rows of `size` elements, `stride` elements from row to row.
void silu_and_mul(Float type, std::size_t rows, std::size_t size, std::ptrdiff_t stride, const void* gate,
                  const void* up, void* y);

// The same with gelu (its tanh form) in place of silu.
void gelu_tanh_and_mul(Float type, std::size_t rows, std::size_t size, std::ptrdiff_t stride, const void* gate,
                       const void* up, void* y);

}  // namespace kvtrove
