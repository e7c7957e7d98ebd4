// Jobs on the pool of threads, of every size, from several threads at once, with pauses in which helpers fall asleep. Memory
// that parts share with their caller is not atomic: the thread sanitizer sees what the pool does not order. Prints what is
// wrong, or "all right".
#include "common/threads.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

using namespace kvtrove;

namespace {

std::atomic<int> failures{0};

void expect(bool holds, const char* what, std::size_t a, std::size_t b) {
    if (!holds && failures++ < 10) std::printf("%s: %zu parts, %zu threads\n", what, a, b);
}

// Each part once, each worker in one part at a time; what the caller wrote is read, what parts wrote is read by the caller.
void check_job(std::size_t parts, std::size_t threads) {
    const std::vector<std::size_t> given(parts, parts + threads);
    std::vector<std::size_t> times(parts);
    std::vector<std::size_t> working(threads);  // parts per worker
    parallel(parts, threads, [&](std::size_t part, std::size_t worker) {
        expect(worker < threads, "a worker too many", parts, threads);
        ++working[worker];
        times[part] += given[part];
    });
    std::size_t all = 0;
    for (const std::size_t count : working) all += count;
    for (const std::size_t count : times) expect(count == parts + threads, "a part not once", parts, threads);
    expect(all == parts, "parts of workers", parts, threads);
}

void check_nested() {
    std::vector<std::size_t> sums(40);
    parallel(sums.size(), 4, [&](std::size_t outer, std::size_t) {
        const auto thread = std::this_thread::get_id();
        parallel(9, 4, [&](std::size_t inner, std::size_t worker) {
            expect(worker == 0 && std::this_thread::get_id() == thread, "a nested job on another thread", 9, 4);
            sums[outer] += inner;
        });
    });
    for (const std::size_t sum : sums) expect(sum == 36, "a nested job", 40, 4);
}

void work(unsigned seed, int jobs) {
    for (int job = 0; job < jobs; ++job) {
        seed = seed * 1664525 + 1013904223;
        check_job(1 + (seed >> 8) % (job % 10 ? 20 : 400), 1 + (seed >> 20) % 6);
        // longer than a helper looks for work
        if (job % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds((seed >> 24) * 4));
    }
}

}  // namespace

int main() {
    set_max_threads(3);
    expect(max_threads() == 3, "a number that was set", 0, 3);
    check_nested();
    work(1, 3000);
    std::vector<std::thread> callers;
    for (unsigned seed = 2; seed < 8; ++seed) callers.emplace_back(work, seed, 500);
    for (std::thread& caller : callers) caller.join();
    check_job(3, 2000);  // more threads than a pool holds
    check_job(70000, 3);
    if (failures == 0) std::puts("all right");
    return failures != 0;
}
