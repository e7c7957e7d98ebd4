#include "threads.h"

#include <omp.h>

namespace kvtrove {

std::size_t max_threads() { return static_cast<std::size_t>(omp_get_max_threads()); }

void run_parts(std::size_t parts, std::size_t threads, void* context,
               void (*run)(void* context, std::size_t part, std::size_t worker)) {
    if (omp_in_parallel()) {
        for (std::size_t part = 0; part < parts; ++part) run(context, part, 0);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
    for (std::ptrdiff_t part = 0; part < static_cast<std::ptrdiff_t>(parts); ++part) {
        run(context, part, omp_get_thread_num());
    }
}

}  // namespace kvtrove
