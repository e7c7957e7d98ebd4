// A product cut into parts that threads take.
#pragma once

#include <algorithm>
#include <cstddef>

#include "common/threads.h"

namespace kvtrove {

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

constexpr std::size_t kWorthAThread = 1 << 17;  // multiply-adds before another thread is woken
constexpr std::size_t kTasksPerThread = 4;      // so that a thread whose core is busy elsewhere holds up the others less

inline std::size_t threads_for(std::size_t work) {
    return std::clamp<std::size_t>(work / kWorthAThread, 1, max_threads());
}

// Half-open ranges of rows of x and of panels.
struct Part {
    std::size_t row, row_end, panel, panel_end;
};

// What is cut: `work` multiply-adds. How: parts of up to so many rows and panels, panels in multiples of `together`, and as
// many parts as `per_thread` says.
struct Cut {
    std::size_t rows, panels, work;
    std::size_t most_rows, most_panels, together;
    std::size_t per_thread = kTasksPerThread;
};

// run(part, worker). Parts are scheduled dynamically; the result does not depend on who computes which. Their number is a
// multiple of the threads, their sizes differ by at most one unit.
template <class Run>
void in_parts(const Cut& cut, Run run) {
    const std::size_t blocks = ceil_div(cut.rows, cut.most_rows), threads = threads_for(cut.work);
    const std::size_t units = ceil_div(cut.panels, cut.together), most_units = ceil_div(cut.most_panels, cut.together);
    const std::size_t wanted = ceil_div(threads > 1 ? threads * cut.per_thread : 1, blocks);
    const std::size_t least = std::max(wanted, ceil_div(units, most_units));
    const std::size_t slices = std::min(units, ceil_div(least, threads) * threads);
    parallel(blocks * slices, threads, [&](std::size_t i, std::size_t worker) {
        const std::size_t block = i / slices, slice = i % slices;
        run(Part{cut.rows * block / blocks, cut.rows * (block + 1) / blocks, units * slice / slices * cut.together,
                 std::min(cut.panels, units * (slice + 1) / slices * cut.together)},
            worker);
    });
}

// run(begin, end) for ranges of panels whose weights pass by once, in multiples of `together`: one long run for each thread,
// because memory is fastest in long ones, and short ones behind them for threads that are done early.
template <class Run>
void in_runs(std::size_t panels, std::size_t together, std::size_t threads, Run run) {
    constexpr std::size_t kShort = 4;  // runs of a thread that together take a quarter
    const std::size_t units = ceil_div(panels, together);
    const std::size_t size = threads > 1 ? units * 3 / (4 * threads) : units, rest = units - size * threads;
    const std::size_t long_runs = size ? threads : 0, short_runs = std::min(rest, threads * kShort);
    parallel(long_runs + short_runs, threads, [&](std::size_t i, std::size_t) {
        const std::size_t at = i - std::min(i, long_runs);  // among the short ones
        const std::size_t begin = i < long_runs ? i * size : long_runs * size + rest * at / short_runs;
        const std::size_t end = i < long_runs ? begin + size : long_runs * size + rest * (at + 1) / short_runs;
        run(begin * together, std::min(panels, end * together));
    });
}

// run(first, count) for pieces of up to `most` rows, as equal as can be.
template <class Run>
void in_pieces(std::size_t rows, std::size_t most, Run run) {
    const std::size_t pieces = ceil_div(rows, most);
    for (std::size_t piece = 0; piece < pieces; ++piece) {
        const std::size_t first = rows * piece / pieces;
        run(first, rows * (piece + 1) / pieces - first);
    }
}

}  // namespace kvtrove
