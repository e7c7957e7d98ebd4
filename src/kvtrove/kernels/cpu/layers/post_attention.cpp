#include "layers/post_attention.h"

#include <cstdint>
#include <stdexcept>

#include "common/parts.h"

namespace kvtrove {

void Between::check() const {
    const std::size_t hidden = o.weights->outputs();
    const auto mlp_fits = [&] {
        return gate_up.weights->inputs() == hidden && gate_up.weights->outputs() == 2 * down.weights->inputs() &&
               down.weights->outputs() == hidden && next_norm.weight;
    };
    const bool fits = gate_up.weights && down.weights ? mlp_fits() : !gate_up.weights && !down.weights && !next.weights;
    if (!fits || (next.weights && next.weights->inputs() != hidden)) {
        throw std::invalid_argument("o, gate_up, down and next are not the matrices of one layer");
    }
}

namespace {

void run_piece(const Between& layer, Float type, std::size_t rows, std::uint8_t* x, const std::uint8_t* mixed,
               std::uint8_t* workspace, std::uint8_t* out) {
    const std::size_t hidden = layer.o.weights->outputs(), bytes = bytes_of(type);
    const auto take = [&](std::size_t width) {
        auto* part = workspace;
        workspace += rows * width * bytes;
        return part;
    };
    auto *added = take(hidden), *normed = take(hidden);
    const auto multiply = [&](const Matrix& matrix, const void* from, void* to) {
        matrix.weights->multiply(from, to, type, rows, matrix.bias);
    };
    const auto add_and_norm = [&](const NormWeight& before, const NormWeight& norm, void* to) {
        if (before.weight) rms_norm({type, rows, hidden, before.weight, before.eps, before.wide}, added, added);
        add_rms_norm({type, rows, hidden, norm.weight, norm.eps, norm.wide}, x, added, to);
    };
    multiply(layer.o, mixed, added);
    add_and_norm(layer.o_norm, layer.norm, layer.down.weights ? normed : out);
    if (!layer.down.weights) return;
    const std::size_t inner = layer.down.weights->inputs();
    auto* gated = take(inner);
    if (layer.gates()) {
        layer.gate_up.weights->multiply_gated(normed, gated, type, rows, layer.gate_up.bias);
    } else {
        auto* gate_up = take(2 * inner);
        multiply(layer.gate_up, normed, gate_up);
        const auto gate = layer.gelu ? gelu_tanh_and_mul : silu_and_mul;
        gate(type, rows, inner, static_cast<std::ptrdiff_t>(2 * inner), gate_up, gate_up + inner * bytes, gated);
    }
    multiply(layer.down, gated, added);
    add_and_norm(layer.down_norm, layer.next_norm, layer.next.weights ? normed : out);
    if (layer.next.weights) multiply(layer.next, normed, out);
}

}  // namespace

void run(const Between& layer, Float type, std::size_t rows, std::uint8_t* x, const std::uint8_t* mixed,
         std::uint8_t* workspace, std::uint8_t* out) {
    const std::size_t bytes = bytes_of(type);
    in_pieces(rows, layer.o.weights->rows_at_once(), [&](std::size_t row, std::size_t count) {
        run_piece(layer, type, count, x + row * layer.o.weights->outputs() * bytes,
                  mixed + row * layer.o.weights->inputs() * bytes, workspace, out + row * layer.outputs() * bytes);
    });
}

}  // namespace kvtrove
