// Draws by Gumbel noise (runner/draw.py): which tokens of a vocabulary take part, and which of them can win, in few passes
// over their weights.
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

// Rows of log-weights [rows, size], the largest of each 0, and their weights. top_k: `size` where a row has none; top_p: 1.
struct Limits {
    const float* scaled;
    float* weights;
    const std::int64_t* top_k;
    const double* top_p;
    std::size_t rows, size;
};

// Sets the weights of tokens to 0 that are not among the top_k of their row or, of those, not among the fewest that hold
// top_p of their mass. Of equal log-weights the lower id is the better one.
void limit(const Limits& limits);

}  // namespace kvtrove
