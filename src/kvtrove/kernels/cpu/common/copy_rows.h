// Copies of whole rows of the arena: what forks and truncations ask for before a step is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtrove {

struct RowPair {
    std::int32_t source;
    std::int32_t target;
};

// Copies row pairs[i].source over row pairs[i].target for i = 0, 1, ..., as if one after the other: a later pair reads
// what an earlier one wrote. rows: num_rows * row_bytes contiguous bytes. num_threads: 0 takes max_threads().
//
// Throws std::out_of_range before anything is copied when a pair names a row that does not exist.
void copy_rows(std::uint8_t* rows, std::size_t num_rows, std::size_t row_bytes, const RowPair* pairs,
               std::size_t num_pairs, int num_threads);

}  // namespace kvtrove
