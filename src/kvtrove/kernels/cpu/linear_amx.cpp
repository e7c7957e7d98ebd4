// Linear layers on AMX tiles: y = x * W^T + bias, with bf16 or int8 weights and float32 or bf16 x.
//
// One layout of the weights and one order of sums serve all numbers of rows. A product of 1 KiB of weights takes 16 cycles
// at most, memory gives a core about 4 bytes in a cycle, so there is no reason for another kernel when there is one row.
#if defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)

#include "linear_amx_int8.h"

namespace kvtrove {

namespace amx {

constexpr std::size_t kMostRows = 512;  // that are packed at a time; what they need of x and sums stays in L2

// Parts of panels of y for many rows; rows are cut only where there are too few panels for all threads. run(part, worker).
template <class Run>
void in_many_parts(const Product& job, std::size_t units, std::size_t most_panels, std::size_t work, Run run) {
    const std::size_t panels = ceil_div(job.y_width(), kWidth), wanted = 2 * threads_for(work);
    const std::size_t most_units = panels >= wanted ? units : ceil_div(units, ceil_div(wanted, panels));
    in_parts({units, panels, work, most_units, most_panels, 1}, run);
}

template <class T>
void multiply_bf16(const Product& job, std::size_t rows) {
    constexpr int kParts = sizeof(T) == 2 ? 1 : 3;
    const std::size_t work = rows * job.inputs * job.outputs, panels = ceil_div(job.y_width(), kWidth);
    if (rows <= kGroupRows) {
        const PackedX x = pack<T>(job, rows, scratch(bytes_of_x(job, rows)));
        const std::size_t together = job.gated || rows > kTileRows ? 1 : 2;
        return in_runs(panels, together, threads_for(work), [&](std::size_t begin, std::size_t end) {
            few_rows<kParts>(job, x, rows, begin, end);
        });
    }
    const std::size_t groups = ceil_div(rows, kGroupRows), bytes = bytes_of_x(job, rows);
    const std::size_t sums = ManyRows<kParts>::sums(ceil_div(job.inputs, kStep), groups);
    std::uint8_t* memory = scratch(bytes + sums * sizeof(float) * threads_for(work));
    const PackedX x = pack<T>(job, rows, memory);
    const std::size_t most_panels = sums ? kBlockPanels / (job.gated ? 2 : 1) : panels;
    in_many_parts(job, groups, most_panels, work, [&](const Part& part, std::size_t worker) {
        ManyRows<kParts>(job, x, rows, part, reinterpret_cast<float*>(memory + bytes) + worker * sums).run();
    });
}

template <class T>
void multiply_int8(const Product& job, std::size_t rows) {
    const std::size_t work = rows * job.inputs * job.outputs, panels = ceil_div(job.y_width(), kWidth);
    const ByteX x = pack_bytes<T>(job, rows, scratch(bytes_of_planes(job, rows)));
    if (rows <= kGroupRows) {
        return in_runs(panels, 1, threads_for(work), [&](std::size_t begin, std::size_t end) {
            ByteRows(job, x, rows).few(begin, end);
        });
    }
    in_many_parts(job, ceil_div(rows, kTileRows), panels, work,
                  [&](const Part& part, std::size_t) { ByteRows(job, x, rows).many(part); });
}

void multiply(const Product& job, std::size_t rows) {
    const bool f32 = job.type == Float::f32;
    const auto some = job.scales ? f32 ? multiply_int8<float> : multiply_int8<std::uint16_t>
                                 : f32 ? multiply_bf16<float> : multiply_bf16<std::uint16_t>;
    in_pieces(rows, kMostRows, [&](std::size_t row, std::size_t count) { some(job.from(row), count); });
}

}  // namespace amx

const LinearLevel kAmxLevel = {layout_of<amx::TilePlaces>(), amx::kMostRows, true, amx::multiply};

}  // namespace kvtrove
#endif
