#include "linear.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear_level.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed weights are read as little-endian words");

namespace kvtrove {

namespace {

namespace portable {
#define KVTROVE_TARGET
#define KVTROVE_LANES 4
#if defined(__aarch64__)
#define KVTROVE_SUMS 24
#else
#define KVTROVE_SUMS 12
#endif
#include "linear_tile.inc"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define KVTROVE_TARGET __attribute__((target("avx2,fma")))
#define KVTROVE_LANES 8
#define KVTROVE_SUMS 12
#include "linear_tile.inc"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
}  // namespace avx2

namespace avx512 {
#define KVTROVE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define KVTROVE_LANES 16
#define KVTROVE_SUMS 24
#include "linear_tile.inc"
#undef KVTROVE_TARGET
#undef KVTROVE_LANES
#undef KVTROVE_SUMS
}  // namespace avx512
#endif

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kWorthAThread = 1 << 19;  // multiply-adds before another thread is woken
constexpr std::size_t kTasksPerThread = 4;      // so that a thread whose core is busy elsewhere holds up the others less

const LinearLevel& level_of(Isa isa) {
#if defined(__x86_64__)
    if (isa >= Isa::avx512) return avx512::kLevel;
    if (isa == Isa::avx2) return avx2::kLevel;
#else
    (void)isa;
#endif
    return portable::kLevel;
}

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Where the int8 weight of an input and the output `at` of a panel lies in the panel.
std::size_t byte_at(std::size_t input, std::size_t at, std::size_t width) {
    return (input / kByteGroup * width + at) * kByteGroup + input % kByteGroup;
}

void widen(const void* values, Float type, std::size_t from, std::size_t count, float* out) {
    if (type == Float::f32) {
        std::memcpy(out, static_cast<const float*>(values) + from, count * sizeof(float));
        return;
    }
    const auto* bits = static_cast<const std::uint16_t*>(values) + from;
    for (std::size_t i = 0; i < count; ++i) out[i] = from_bf16(bits[i]);
}

// x as float32: itself, or widened into memory of the calling thread that is kept for the next call.
const float* as_float32(const void* x, Float type, std::size_t count) {
    if (type == Float::f32) return static_cast<const float*>(x);
    static thread_local std::vector<float> wide;
    if (wide.size() < count) wide.resize(count);
    widen(x, type, 0, count, wide.data());
    return wide.data();
}

// Every thread takes the next part that nobody has: which one does not matter to the result.
template <class Run>
void in_parts(const Product& job, const LinearLevel& level, std::size_t rows, std::size_t most_rows, Run run) {
    const std::size_t panels = ceil_div(job.outputs, level.width), blocks = ceil_div(rows, most_rows);
    const std::size_t work = rows * job.inputs * job.outputs;
    const std::size_t threads = std::clamp<std::size_t>(work / kWorthAThread, 1, omp_get_max_threads());
    std::size_t size = std::max<std::size_t>(1, panels * blocks / (threads * kTasksPerThread));
    size = std::min(level.most_panels, ceil_div(size, 4) * 4);  // panels are read four at a time when there is one row
    const std::size_t slices = ceil_div(panels, size);
    const auto parts = static_cast<std::ptrdiff_t>(blocks * slices);
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads)) if (threads > 1)
    for (std::ptrdiff_t i = 0; i < parts; ++i) {
        const std::size_t block = i / slices, slice = i % slices;
        run(job, Part{rows * block / blocks, rows * (block + 1) / blocks, slice * size,
                      std::min(panels, (slice + 1) * size)});
    }
}

}  // namespace

void PackedWeights::Free::operator()(std::uint8_t* memory) const { std::free(memory); }

std::size_t PackedWeights::panels() const { return ceil_div(outputs_, level_->width); }

std::size_t PackedWeights::panel_bytes() const {
    return level_->width * (kind_ == Kind::bf16 ? inputs_ * 2 : ceil_div(inputs_, kByteGroup) * kByteGroup);
}

std::size_t PackedWeights::nbytes() const {
    return panels() * (panel_bytes() + (scales_ ? level_->width * sizeof(float) : 0));
}

PackedWeights::PackedWeights(std::size_t outputs, std::size_t inputs, Kind kind, Isa isa)
    : outputs_(outputs), inputs_(inputs), kind_(kind), level_(&level_of(isa)) {
    if (!outputs || !inputs) {
        throw std::invalid_argument("weights of shape [" + std::to_string(outputs) + ", " + std::to_string(inputs) +
                                    "]: both must be at least 1");
    }
    const std::size_t size = ceil_div(panels() * panel_bytes(), kCacheLine) * kCacheLine;
    data_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(kCacheLine, size)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, size);
    if (kind == Kind::int8) scales_ = std::make_unique<float[]>(panels() * level_->width);
}

void PackedWeights::fill(std::size_t first_output, const FloatMatrix& source) {
    if (source.cols != inputs_ || first_output > outputs_ || source.rows > outputs_ - first_output) {
        throw std::invalid_argument("a source of shape [" + std::to_string(source.rows) + ", " +
                                    std::to_string(source.cols) + "] does not fit at output " +
                                    std::to_string(first_output) + " of weights [" + std::to_string(outputs_) + ", " +
                                    std::to_string(inputs_) + "]");
    }
    std::ptrdiff_t broken = -1;
#pragma omp parallel if (source.rows * inputs_ > kWorthAThread)
    {
        std::vector<float> values(inputs_);
#pragma omp for
        for (std::ptrdiff_t row = 0; row < static_cast<std::ptrdiff_t>(source.rows); ++row) {
            widen(source.data, source.type, row * inputs_, inputs_, values.data());
            if (kind_ == Kind::int8 && !std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
#pragma omp atomic write
                broken = row;
            } else {
                fill_row(first_output + row, values.data());
            }
        }
    }
    if (broken >= 0) {
        throw std::invalid_argument("row " + std::to_string(broken) +
                                    " of the source holds a NaN or an infinity, which int8 cannot; use bf16 weights");
    }
}

void PackedWeights::fill_row(std::size_t output, const float* values) {
    const std::size_t width = level_->width, lanes = width / 2, at = output % width;
    auto* panel = data_.get() + output / width * panel_bytes();
    if (kind_ == Kind::bf16) {
        auto* to = reinterpret_cast<std::uint16_t*>(panel) + at % lanes * 2 + at / lanes;
        for (std::size_t k = 0; k < inputs_; ++k) to[k * width] = to_bf16(values[k]);
        return;
    }
    float largest = 0;
    for (std::size_t k = 0; k < inputs_; ++k) largest = std::max(largest, std::fabs(values[k]));
    const float scale = largest / 127;
    scales_[output] = scale * kByteUnit;
    for (std::size_t k = 0; k < inputs_; ++k) {
        const float steps = scale > 0 ? std::nearbyint(values[k] / scale) : 0;
        const auto byte = static_cast<std::int8_t>(std::clamp(steps, -127.0f, 127.0f));
        panel[byte_at(k, at, width)] = static_cast<std::uint8_t>(byte);
    }
}

float PackedWeights::element(std::size_t output, std::size_t input) const {
    const std::size_t width = level_->width, lanes = width / 2, at = output % width;
    const auto* panel = data_.get() + output / width * panel_bytes();
    if (kind_ == Kind::bf16) {
        return from_bf16(reinterpret_cast<const std::uint16_t*>(panel)[input * width + at % lanes * 2 + at / lanes]);
    }
    return static_cast<std::int8_t>(panel[byte_at(input, at, width)]) * (scales_[output] / kByteUnit);
}

void PackedWeights::multiply(const void* x, void* y, Float type, std::size_t rows, const float* bias) const {
    Product job{data_.get(), panel_bytes(), inputs_, outputs_, scales_.get(), bias, x, y, type};
    if (rows > level_->few) {
        in_parts(job, *level_, rows, level_->most_rows, level_->run_many);
    } else if (rows) {
        job.x = as_float32(x, type, rows * inputs_);
        in_parts(job, *level_, rows, level_->few, level_->run_few);
    }
}

void PackedWeights::gather(const std::int64_t* ids, std::size_t count, void* y, Float type) const {
    for (std::size_t i = 0; i < count; ++i) {
        if (ids[i] >= 0 && static_cast<std::size_t>(ids[i]) < outputs_) continue;
        throw std::out_of_range("ids[" + std::to_string(i) + "] is row " + std::to_string(ids[i]) +
                                ", but the weights have " + std::to_string(outputs_) + " rows");
    }
#pragma omp parallel for if (count * inputs_ > kWorthAThread)
    for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(count); ++i) {
        for (std::size_t k = 0; k < inputs_; ++k) {
            const float value = element(ids[i], k);
            if (type == Float::f32) {
                static_cast<float*>(y)[i * inputs_ + k] = value;
            } else {
                static_cast<std::uint16_t*>(y)[i * inputs_ + k] = to_bf16(value);
            }
        }
    }
}

}  // namespace kvtrove
