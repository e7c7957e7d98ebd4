// Mamba2: convolutions of all channels, then head by head the walk over its state, then norms and gates token by token.
#include "layers/state_lanes.h"
#include "common/threads.h"

namespace kvtrove {

namespace {

struct Part {
    std::size_t start, stop, seat, head;
};

// A head's tokens, one after the other: x of `workspace` becomes what the head reads plus what it skips.
template <class T>
KVTROVE_INLINE void scan_head(const Mamba& m, const Mixed& mixed, const Part& part, float* workspace) {
    const std::size_t inner = m.heads * m.head_dim, width = m.taps.width, head = part.head;
    const std::size_t group = head / (m.heads / m.groups);
    float* matrix = mixed.matrix + part.seat * mixed.matrix_stride + head * m.head_dim * m.state;
    for (std::size_t t = part.start; t < part.stop; ++t) {
        float* row = workspace + t * width;
        float* x = row + head * m.head_dim;
        const float *b = row + inner + group * m.state, *c = b + m.groups * m.state;
        const T given = static_cast<const T*>(mixed.x)[t * mixed.stride + inner + width + head];
        const float step = std::min(std::max(softplus(get(&given) + m.dt[head]), m.shortest), m.longest);
        const float fade = std::exp(-m.decay[head] * step);
        for (std::size_t i = 0; i < m.head_dim; ++i) {
            float* h = matrix + i * m.state;
            const float enters = x[i] * step;
            Lanes sum = {};
            for (std::size_t j = 0; j < m.state; j += kLanes) {
                const std::size_t n = m.state - j;
                const Lanes now = load_some(h + j, n) * fade + enters * load_some(b + j, n);
                store_some(h + j, now, n);
                sum += now * load_some(c + j, n);
            }
            x[i] = sum_of(sum) + m.skip[head] * x[i];
        }
    }
}

template <class T>
KVTROVE_INLINE void write_token(const Mamba& m, const Mixed& mixed, std::size_t token, float* y) {
    const std::size_t inner = m.heads * m.head_dim, size = inner / m.groups;
    const T* z = static_cast<const T*>(mixed.x) + token * mixed.stride;
    T* out = static_cast<T*>(mixed.out) + token * inner;
    for (std::size_t first = 0; first < inner; first += size) {
        for (std::size_t i = first; i < first + size; i += kLanes) {
            const std::size_t n = first + size - i;
            Lanes gate = load_some(z + i, n);
            silu<Words>(gate);
            store_some(y + i, load_some(y + i, n) * gate, n);
        }
        const float scale = 1.0f / std::sqrt(sum_of_squares(y + first, size) / static_cast<float>(size) + m.eps);
        for (std::size_t i = first; i < first + size; ++i) put(out + i, y[i] * scale * m.norm[i]);
    }
}

KVTROVE_CLONES void scan_f32(const Mamba& m, const Mixed& mixed, const Part& part, float* workspace) {
    scan_head<float>(m, mixed, part, workspace);
}

KVTROVE_CLONES void scan_bf16(const Mamba& m, const Mixed& mixed, const Part& part, float* workspace) {
    scan_head<std::uint16_t>(m, mixed, part, workspace);
}

KVTROVE_CLONES void write_f32(const Mamba& m, const Mixed& mixed, std::size_t token, float* y) {
    write_token<float>(m, mixed, token, y);
}

KVTROVE_CLONES void write_bf16(const Mamba& m, const Mixed& mixed, std::size_t token, float* y) {
    write_token<std::uint16_t>(m, mixed, token, y);
}

}  // namespace

void mix(const Mamba& m, const Mixed& mixed, const StateStep& step, float* workspace) {
    const auto tokens = static_cast<std::size_t>(step.starts[step.sequences]);
    const std::size_t inner = m.heads * m.head_dim, bytes = mixed.is_bf16 ? sizeof(std::uint16_t) : sizeof(float);
    Mixed inputs = mixed;
    inputs.x = static_cast<const std::uint8_t*>(mixed.x) + inner * bytes;
    convolve(m.taps, inputs, workspace, step);
    parallel(step.sequences * m.heads, state_threads(tokens * inner * m.state), [&](std::size_t index, std::size_t) {
        const std::size_t s = index / m.heads;
        const Part part{static_cast<std::size_t>(step.starts[s]), static_cast<std::size_t>(step.starts[s + 1]),
                        static_cast<std::size_t>(step.seats[s]), index % m.heads};
        (mixed.is_bf16 ? scan_bf16 : scan_f32)(m, mixed, part, workspace);
    });
    parallel(tokens, state_threads(tokens * inner), [&](std::size_t token, std::size_t) {
        (mixed.is_bf16 ? write_bf16 : write_f32)(m, mixed, token, workspace + token * m.taps.width);
    });
}

}  // namespace kvtrove
