#include "norm.h"

#include <cmath>

namespace kvtrove {

namespace {

constexpr std::size_t kSums = 16;                // independent sums, so that the compiler can use vectors
constexpr std::size_t kWorthAThread = 1 << 16;  // elements before another thread is woken

float sum_of_squares(const float* x, std::size_t size) {
    float sums[kSums] = {};
    std::size_t i = 0;
    for (; i + kSums <= size; i += kSums) {
        for (std::size_t j = 0; j < kSums; ++j) sums[j] += x[i + j] * x[i + j];
    }
    for (std::size_t j = 0; i + j < size; ++j) sums[j] += x[i + j] * x[i + j];
    for (std::size_t width = kSums / 2; width; width /= 2) {
        for (std::size_t j = 0; j < width; ++j) sums[j] += sums[j + width];
    }
    return sums[0];
}

}  // namespace

void rms_norm(const float* x, const float* weight, float* y, std::size_t rows, std::size_t size, float eps) {
#pragma omp parallel for if (rows * size > kWorthAThread)
    for (std::ptrdiff_t row = 0; row < static_cast<std::ptrdiff_t>(rows); ++row) {
        const float* from = x + row * size;
        float* to = y + row * size;
        const float scale = 1.0f / std::sqrt(sum_of_squares(from, size) / static_cast<float>(size) + eps);
        for (std::size_t i = 0; i < size; ++i) to[i] = from[i] * scale * weight[i];
    }
}

}  // namespace kvtrove
