// Vectors of stored elements to float32 and back.
#pragma once

#include <cstring>

#include "attention/attention.h"
#include "common/half.h"
#include "common/vector/eight.h"

namespace kvtrove::attention {

// from: `count` elements. Exact.
inline void floats_of(const std::uint8_t* from, Element element, int count, float* to) {
    const auto* halves = reinterpret_cast<const std::uint16_t*>(from);
    if (element == Element::float32) {
        std::memcpy(to, from, sizeof(float) * count);
    } else if (element == Element::bfloat16) {
        for (int i = 0; i < count; ++i) to[i] = float_of_bfloat16(halves[i]);
    } else {
        for (int i = 0; i < count; ++i) to[i] = float_of_float16(halves[i]);
    }
}

// to: `count` elements, rounded to nearest.
inline void from_floats(const float* from, Element element, int count, std::uint8_t* to) {
    auto* halves = reinterpret_cast<std::uint16_t*>(to);
    if (element == Element::float32) {
        std::memcpy(to, from, sizeof(float) * count);
    } else if (element == Element::bfloat16) {
        int i = 0;
        constexpr int kEight = eight::kLanes;
        for (eight::Floats some; i + kEight <= count; i += kEight) eight::load(from + i, some), eight::store(halves + i, some);
        for (; i < count; ++i) halves[i] = bfloat16_of_float(from[i]);
    } else {
        for (int i = 0; i < count; ++i) halves[i] = float16_of_float(from[i]);
    }
}

}  // namespace kvtrove::attention
