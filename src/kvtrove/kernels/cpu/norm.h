// RMSNorm (arXiv 1910.07467) of float32 rows.
#pragma once

#include <cstddef>

namespace kvtrove {

// y = x / sqrt(mean(x^2) + eps) * weight for every row; x, y [rows, size], weight [size]. y may be x. The sum of squares
// has one order, whatever the number of rows and threads.
void rms_norm(const float* x, const float* weight, float* y, std::size_t rows, std::size_t size, float eps);

}  // namespace kvtrove
