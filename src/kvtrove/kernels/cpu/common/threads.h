// The one way in which kernels use several threads: a job is cut into parts, which threads take one after the other.
#pragma once

#include <cstddef>
#include <type_traits>

namespace kvtrove {

// Threads that a job uses at most when its caller names no number: what was set, else the cores that the process may use;
// one for a job that a part starts.
std::size_t max_threads();
void set_max_threads(std::size_t threads);

// run(context, part, worker) for part = 0 .. parts - 1, in ascending order of their start, and returns when all are done.
// The calling thread is worker 0, up to `threads` - 1 others help; no two parts run at the same time with the same worker.
// Which worker takes which part is open, so results must not depend on it, nor on how many there are: `run` must not
// throw. A job that a part starts, or that starts while another thread's job runs, runs on its caller's thread alone.
void run_parts(std::size_t parts, std::size_t threads, void* context,
               void (*run)(void* context, std::size_t part, std::size_t worker));

// run(part, worker), as above.
template <class Run>
void parallel(std::size_t parts, std::size_t threads, Run&& run) {
    if (threads <= 1 || parts <= 1) {
        for (std::size_t part = 0; part < parts; ++part) run(part, std::size_t{0});
        return;
    }
    using Callable = std::remove_reference_t<Run>;
    run_parts(parts, threads, const_cast<void*>(static_cast<const void*>(&run)),
              [](void* context, std::size_t part, std::size_t worker) { (*static_cast<Callable*>(context))(part, worker); });
}

// run(begin, end) for half-open ranges of 0 .. count - 1, a few for each thread.
template <class Run>
void parallel_ranges(std::size_t count, std::size_t threads, Run&& run) {
    constexpr std::size_t kRangesPerThread = 4;  // so that a thread whose core is busy elsewhere holds up the others less
    const std::size_t ranges = threads <= 1 ? 1 : (count < threads * kRangesPerThread ? count : threads * kRangesPerThread);
    parallel(ranges, threads, [&](std::size_t part, std::size_t) { run(count * part / ranges, count * (part + 1) / ranges); });
}

}  // namespace kvtrove
