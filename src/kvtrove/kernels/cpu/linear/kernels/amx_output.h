// From the sums of a panel to y: scale, bias, gate, rounding.
#pragma once

#include "common/vector/silu.h"
#include "linear/kernels/amx_layout.h"

namespace kvtrove::amx {

// As in bfloat16_of_float: to nearest, ties to even; a NaN stays one.
KVTROVE_AMX inline Words rounded(Floats values) {
    const Words bits = reinterpret_cast<Words>(values);
    const Words nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return values == values ? nearest : (bits >> 16 | 0x40);
}

// Rounded to bf16 where that is the type of y.
KVTROVE_AMX inline Floats as_kept(Floats values, Float type) {
    return type == Float::f32 ? values : reinterpret_cast<Floats>(rounded(values) << 16);
}

// silu(gate), with every number rounded that silu_and_mul would find or leave in memory.
KVTROVE_AMX inline Floats activated(Floats gate, Float type) {
    gate = as_kept(gate, type);
    silu<Words>(gate);
    return as_kept(gate, type);
}

// The low halves of all words, those of `low` first.
KVTROVE_AMX inline Words halves(Words low, Words high) {
    typedef std::uint16_t All __attribute__((vector_size(64)));
    constexpr All kEven = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                           32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    return reinterpret_cast<Words>(__builtin_shuffle(reinterpret_cast<All>(low), reinterpret_cast<All>(high), kEven));
}

// A cache line to memory, past the caches: nobody fetches it first in order to write to it. See `fence`.
template <class Line>
[[gnu::always_inline]] KVTROVE_AMX inline void stream(const Line& line, std::uint8_t* to) {
    static_assert(sizeof(Line) == kCacheLine);
#if defined(KVTROVE_EMULATE_AMX)
    std::memcpy(to, &line, kCacheLine);
#else
    asm volatile("vmovntdq %1, %0" : "=m"(*reinterpret_cast<Line*>(to)) : "v"(line));
#endif
}

// What was streamed comes before what this thread writes from now on.
inline void fence() {
#if !defined(KVTROVE_EMULATE_AMX)
    asm volatile("sfence" : : : "memory");
#endif
}

// One panel of y. Where the product is gated, the panels of the gate come first and wait for those they belong to.
class Output {
  public:
    Output() = default;

    // gates: [rows of a block][32], of the thread.
    KVTROVE_AMX Output(const Product& job, std::size_t panel, float* gates) : job_(&job), gates_(gates) {
        const std::size_t first = panel * kWidth, gate_panels = job.gated ? job.outputs / 2 / kWidth : 0;
        role_ = !job.gated ? plain : panel < gate_panels ? gate : up;
        column_ = first - (role_ == up ? gate_panels * kWidth : 0);
        columns_ = std::min(kWidth, job.outputs - first);
        streams_ = job.streams && columns_ == kWidth;
        if (job.scales) std::memcpy(scale_, job.scales + first, sizeof scale_);
        if (job.bias) std::memcpy(bias_, job.bias + first, columns_ * sizeof(float));
    }

    // Row `row` of y from its sums; `line`: which one of the block it is.
    [[gnu::always_inline]] KVTROVE_AMX void put(std::size_t row, std::size_t line, Floats low, Floats high) const {
        if (job_->scales) low *= scale_[0], high *= scale_[1];
        if (job_->bias) low += bias_[0], high += bias_[1];
        float* waiting = gates_ + line * kWidth;
        if (role_ == gate) {  // which takes as long as the product behind it leaves vectors idle, so it comes first
            low = activated(low, job_->type), high = activated(high, job_->type);
            std::memcpy(waiting, &low, sizeof low);
            std::memcpy(waiting + kColumns, &high, sizeof high);
            return;
        }
        if (role_ == up) {
            Floats gate_low, gate_high;
            std::memcpy(&gate_low, waiting, sizeof gate_low);
            std::memcpy(&gate_high, waiting + kColumns, sizeof gate_high);
            low = gate_low * as_kept(low, job_->type), high = gate_high * as_kept(high, job_->type);
        }
        store(row * job_->y_width() + column_, low, high);
    }

  private:
    enum Role { plain, gate, up };

    // Outputs that only fill up the last panel are left out.
    [[gnu::always_inline]] KVTROVE_AMX void store(std::size_t at, Floats low, Floats high) const {
        if (job_->type == Float::f32) {
            auto* to = static_cast<std::uint8_t*>(job_->y) + at * sizeof(float);
            put_line(to, low, std::min(columns_, kColumns) * sizeof(float));
            put_line(to + kCacheLine, high, columns_ < kColumns ? 0 : (columns_ - kColumns) * sizeof(float));
        } else {
            const Words line = halves(rounded(low), rounded(high));
            put_line(static_cast<std::uint8_t*>(job_->y) + at * sizeof(std::uint16_t), line, columns_ * sizeof(std::uint16_t));
        }
    }

    template <class Line>
    [[gnu::always_inline]] KVTROVE_AMX void put_line(std::uint8_t* to, const Line& line, std::size_t bytes) const {
        if (streams_) {
            stream(line, to);
        } else if (columns_ == kWidth) {  // a size that is known becomes one instruction
            std::memcpy(to, &line, sizeof line);
        } else {
            std::memcpy(to, &line, bytes);
        }
    }

    const Product* job_ = nullptr;
    float* gates_ = nullptr;
    Role role_ = plain;
    bool streams_ = false;
    std::size_t column_ = 0, columns_ = 0;
    Floats scale_[kHalves] = {}, bias_[kHalves] = {};
};

// The panels of weights behind panel `panel` of y: one, or that of the gate and that of what it is multiplied with.
struct Sources {
    std::size_t panels[2];
    std::size_t count;

    Sources(const Product& job, std::size_t panel)
        : panels{panel, panel + job.outputs / 2 / kWidth}, count(job.gated ? 2 : 1) {}
};

}  // namespace kvtrove::amx
