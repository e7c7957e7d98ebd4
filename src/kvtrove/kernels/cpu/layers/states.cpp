#include "layers/states.h"

#include "layers/state_lanes.h"
#include "common/threads.h"

namespace kvtrove {

namespace {

constexpr std::size_t kWorthAThread = 1 << 14;  // elements before another thread is woken

struct Slice {
    std::size_t start, stop, seat, first, count;
};

template <class T>
KVTROVE_INLINE void convolve_slice(const Taps& taps, const Mixed& mixed, float* y, const Slice& slice) {
    const T* x = static_cast<const T*>(mixed.x) + slice.start * mixed.stride;
    T* state = static_cast<T*>(mixed.conv) + slice.seat * mixed.conv_stride;
    convolve_channels<T>(taps, x, mixed.stride, slice.stop - slice.start, state, slice.first, slice.count,
                         y + slice.start * taps.width + slice.first, taps.width);
}

KVTROVE_CLONES void convolve_f32(const Taps& taps, const Mixed& mixed, float* y, const Slice& slice) {
    convolve_slice<float>(taps, mixed, y, slice);
}

KVTROVE_CLONES void convolve_bf16(const Taps& taps, const Mixed& mixed, float* y, const Slice& slice) {
    convolve_slice<std::uint16_t>(taps, mixed, y, slice);
}

}  // namespace

std::size_t state_threads(std::size_t elements) {
    return std::min(max_threads(), std::max<std::size_t>(1, elements / kWorthAThread));
}

void convolve(const Taps& taps, const Mixed& mixed, float* y, const StateStep& step) {
    constexpr std::size_t kChannels = 256;
    const std::size_t slices = (taps.width + kChannels - 1) / kChannels;
    const auto tokens = static_cast<std::size_t>(step.starts[step.sequences]);
    parallel(slices * step.sequences, state_threads(tokens * taps.width), [&](std::size_t part, std::size_t) {
        const std::size_t s = part / slices, first = part % slices * kChannels;
        const Slice slice{static_cast<std::size_t>(step.starts[s]), static_cast<std::size_t>(step.starts[s + 1]),
                          static_cast<std::size_t>(step.seats[s]), first, std::min(kChannels, taps.width - first)};
        (mixed.is_bf16 ? convolve_bf16 : convolve_f32)(taps, mixed, y, slice);
    });
}

}  // namespace kvtrove
