// Linear layers, y = x * W^T + bias, whose weights stay in memory as bf16, as int8, or in groups of 4 or 8 bits (linear/groups.h).
//
// bf16 becomes float32 in registers; every output is one chain of float32 sums over the inputs in ascending order (one input
// at a time; 32 on AMX). On vectors, int8 weights meet x as 16-bit integers (kernels/vector_int8.h); on AMX they become bf16.
// Neither the number of rows nor blocking nor threads change a sum: a row gives the same bits in every batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/isa.h"
#include "common/pages.h"

namespace kvtrove {

enum class Float { f32, bf16 };

constexpr std::size_t bytes_of(Float type) { return type == Float::f32 ? 4 : 2; }

// A row-major matrix of float32 or bf16 numbers without gaps.
struct FloatMatrix {
    const void* data;
    Float type;
    std::size_t rows, cols;
};

struct LinearLevel;  // the functions of one instruction set
enum class Form : std::uint8_t;  // how weights in groups lie together
struct Product;

// W [outputs, inputs], repacked for streaming: panels of as many outputs as the level wants, in each of them input
// after input, so that one thread reads one run of memory. The last panel is filled up with zeros.
class PackedWeights {
  public:
    // int8: symmetric, value = scale of the output * integer of -127..127
    // int4: value = scale * integer of 0..15 + minimum, both for 32 inputs and float16; int4_f32: both float32
    // int8_groups: value = scale * (integer of 0..255 - 128), the scale for 32 inputs and float16
    // int8_groups_f32: value = scale * integer of 0..255 + minimum, both for 32 inputs and float32
    // fp4: value = scale * what a code E2M1 stands for, doubled (linear/groups.h), the scale for 32 inputs and float16
    // int4_symmetric: value = scale * (integer of 0..15 - 8), the scale for 32 inputs and float16
    enum class Kind { bf16, int8, int4, int4_f32, int8_groups, int8_groups_f32, fp4, int4_symmetric };

    // Zeros. Throws std::bad_alloc, and std::invalid_argument when a dimension is 0.
    PackedWeights(std::size_t outputs, std::size_t inputs, Kind kind, Isa isa);

    // Overwrites outputs first_output .. first_output + source.rows, rounding to nearest or quantising.
    // Throws std::invalid_argument when they do not exist, source.cols != inputs, or (all but bf16) a value is not finite.
    void fill(std::size_t first_output, const FloatMatrix& source);

    // The same for weights in groups that have this form already: numbers [count, inputs], scales and minima [count, groups of
    // 32 inputs], kept as they are. Throws std::invalid_argument where the format cannot hold them.
    void fill_groups(std::size_t first_output, std::size_t count, const std::uint8_t* numbers, const float* scales,
                     const float* minima);

    // y [rows, outputs] = x [rows, inputs] * W^T + bias; x and y are both of type `type`, bias float32 [outputs] or null.
    void multiply(const void* x, void* y, Float type, std::size_t rows, const float* bias) const;

    // y [rows, outputs / 2] = silu(first half of what multiply() gives) * second half, with the bits of both calls one after
    // the other (rows.h). Throws std::invalid_argument unless gates().
    void multiply_gated(const void* x, void* y, Float type, std::size_t rows, const float* bias) const;
    bool gates() const;

    // W is [heads, outputs / heads, inputs], whose heads are whole panels: y [heads, rows, each] = x [heads, rows, inputs] * W^T of
    // every head. each: outputs of a head that count, those before what fills up its last panel. The bits of a row are those of
    // multiply(). Throws std::invalid_argument for other heads.
    void multiply_heads(const void* x, void* y, Float type, std::size_t rows, std::size_t heads, std::size_t each) const;

    // Rows that pass through several matrices before the next ones do, so that what lies between them stays in caches.
    std::size_t rows_at_once() const;

    // y [count, inputs] = the rows `ids` of W, as embeddings are looked up. Throws std::out_of_range for other rows.
    void gather(const std::int64_t* ids, std::size_t count, void* y, Float type) const;

    std::size_t outputs() const { return outputs_; }
    std::size_t inputs() const { return inputs_; }
    std::size_t width() const;   // outputs of a panel
    std::size_t nbytes() const;  // weights, padding and scales

  private:
    bool grouped() const { return kind_ >= Kind::int4; }
    Form form() const { return static_cast<Form>(grouped() ? static_cast<int>(kind_) - static_cast<int>(Kind::int4) : 0); }
    std::size_t panels() const;
    std::size_t panel_bytes() const;
    std::uint8_t* panel_of(std::size_t output) const;
    void check_fit(std::size_t first_output, std::size_t rows, std::size_t cols) const;
    void run(const Product& product, std::size_t rows) const;
    struct Row;
    bool fill_row(std::size_t output, const float* values, Row& row);
    void read_row(std::size_t output, float* values, Row& row) const;

    std::size_t outputs_, inputs_;
    Kind kind_;
    const LinearLevel* level_;
    Pages data_;
    std::unique_ptr<float[]> scales_;  // [panels * width], int8 only
};

}  // namespace kvtrove
