// Which tokens of a vocabulary can win a draw by Gumbel noise (runner/draw.py), in one pass over their weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtrove {

// Weights [rows, size], and D draws from them: places [D], the row of each; keys [D, 4], of which two words are read.
struct Race {
    const float* weights;
    const std::int64_t* places;
    const std::uint32_t* keys;
    std::size_t draws, size;
};

// candidates [draws, most], counts [draws]: the tokens that can win each draw, ascending. A count beyond `most` means that
// there are that many, and only the first are listed.
void race(const Race& race, std::size_t most, std::int32_t* candidates, std::int32_t* counts);

}  // namespace kvtrove
