#include "common/copy_rows.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/threads.h"

namespace kvtrove {

namespace {

constexpr std::size_t kCacheLine = 64;             // bytes; with aligned rows no two threads write one line
constexpr std::size_t kWorthAThread = 256 * 1024;  // bytes to copy before another thread is woken

void check(const RowPair* pairs, std::size_t num_pairs, std::size_t num_rows) {
    const auto exists = [num_rows](std::int32_t row) { return row >= 0 && static_cast<std::size_t>(row) < num_rows; };
    for (std::size_t i = 0; i < num_pairs; ++i) {
        if (exists(pairs[i].source) && exists(pairs[i].target)) continue;
        throw std::out_of_range("pairs[" + std::to_string(i) + "] copies row " + std::to_string(pairs[i].source) +
                                " to row " + std::to_string(pairs[i].target) + ", but the arena has " +
                                std::to_string(num_rows) + " rows");
    }
}

}  // namespace

//             part 0     part 1     part 2
//   row 0  | ........ | ........ | ........ |      Each part owns a range of columns and runs through all pairs in
//   row 1  | ........ | ........ | ........ |      order, so the order holds for every byte and nobody waits.
//   row 2  | ........ | ........ | ........ |
void copy_rows(std::uint8_t* rows, std::size_t num_rows, std::size_t row_bytes, const RowPair* pairs,
               std::size_t num_pairs, int num_threads) {
    check(pairs, num_pairs, num_rows);
    const std::size_t lines = (row_bytes + kCacheLine - 1) / kCacheLine;
    const std::size_t useful = std::max<std::size_t>(1, num_pairs * row_bytes / kWorthAThread);
    const std::size_t team = num_threads > 0 ? num_threads : std::min(max_threads(), useful);

    parallel(team, team, [&](std::size_t part, std::size_t) {
        const std::size_t begin = std::min(row_bytes, lines * part / team * kCacheLine);
        const std::size_t end = std::min(row_bytes, lines * (part + 1) / team * kCacheLine);
        for (std::size_t i = 0; i < num_pairs; ++i) {
            const auto [source, target] = pairs[i];
            if (source == target) continue;
            std::memcpy(rows + target * row_bytes + begin, rows + source * row_bytes + begin, end - begin);
        }
    });
}

}  // namespace kvtrove
