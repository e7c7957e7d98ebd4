// The gates of SwiGLU and GeGLU on vectors of any width. Compile them with -ffp-contract=off: then all widths give the
// same bits.
#pragma once

#include <cstdint>

namespace kvtrove {

// x = x / (1 + 2^t). 2^t lies between 2^-126 and 2^127. Words: unsigned integers of as many lanes.
template <class Words, class Floats>
[[gnu::always_inline]] inline void over_one_plus_power(Floats& x, Floats t) {
    const Floats low = Floats{} - 126.0f, high = Floats{} + 127.0f;
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    t = t < low ? low : t, t = t > high ? high : t;
    const Floats shifted = t + magic, f = t - (shifted - magic);  // f in [-1/2, 1/2]
    Floats y = Floats{} + 1.540353039e-4f;                        // Taylor series of 2^f: ln(2)^k / k!
    y = y * f + 1.333355815e-3f;
    y = y * f + 9.618129108e-3f;
    y = y * f + 5.550410866e-2f;
    y = y * f + 2.402265070e-1f;
    y = y * f + 6.931471806e-1f;
    y = y * f + 1.0f;
    x = x / (1.0f + reinterpret_cast<Floats>(reinterpret_cast<Words>(y) +
                                             ((reinterpret_cast<Words>(shifted) - 0x4B400000u) << 23)));
}

// x = x / (1 + e^-x). e^-x has a relative error up to (1 + |x|) * 2^-22.
template <class Words, class Floats>
[[gnu::always_inline]] inline void silu(Floats& x) {
    over_one_plus_power<Words>(x, x * -1.44269504f);
}

// x = x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), as x / (1 + e^-2u): nothing cancels below zero.
template <class Words, class Floats>
[[gnu::always_inline]] inline void gelu_tanh(Floats& x) {
    over_one_plus_power<Words>(x, x * (x * x * -0.102943240f - 2.30220819f));
}

}  // namespace kvtrove
