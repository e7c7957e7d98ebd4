// Linear layers on AMX tiles: y = x * W^T + bias, with bf16 or int8 weights and float32 or bf16 x.
//
// One layout of the weights and one order of sums serve all numbers of rows. A product of 1 KiB of weights takes 16 cycles
// at most, memory gives a core about 4 bytes in a cycle, so there is no reason for another kernel when there is one row.
#if defined(__x86_64__) || defined(KVTROVE_EMULATE_AMX)

#include "linear/kernels/amx_groups.h"
#include "linear/kernels/amx_int8.h"

namespace kvtrove {

namespace amx {

constexpr std::size_t kMostRows = 512;        // that are packed at a time; what they need of x and sums stays in L2
constexpr std::size_t kLongRows = 256;        // the same where inputs are several blocks: half the sums wait half as often
constexpr std::size_t kOwnRows = 128;         // of x that one thread packs and multiplies, where outputs are few
constexpr std::size_t kFewOutputs = 2048;     // whose weights take less time to read again than x to change its core
constexpr std::size_t kTurns = 2;             // of every thread at least
constexpr std::size_t kStreamed = 512 << 10; // bytes of y that leave no room for what else L2 should hold

// Of a part: all, unless sums of several blocks of inputs are kept for each of them.
std::size_t most_panels(const Product& job, std::size_t kept) {
    return kept ? kBlockPanels / (job.gated ? 2 : 1) : ceil_div(job.y_width(), kWidth);
}

// Parts of panels of y for many rows; rows are cut only where there are too few panels for all threads. run(part, worker).
// Where sums are kept for several blocks of inputs, every part reads all of x: there are fewer of them.
template <class Run>
void in_many_parts(const Product& job, std::size_t units, std::size_t kept, std::size_t work, Run run) {
    constexpr std::size_t kLongParts = 2;
    const std::size_t panels_of_part = most_panels(job, kept);
    const std::size_t panels = ceil_div(job.y_width(), kWidth), wanted = 2 * threads_for(work);
    const std::size_t most_units = panels >= wanted ? units : ceil_div(units, ceil_div(wanted, panels));
    in_parts({units, panels, work, most_units, panels_of_part, 1, kept ? kLongParts : kTasksPerThread}, run);
}

std::size_t whole_lines(std::size_t bytes) { return ceil_div(bytes, kCacheLine) * kCacheLine; }

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
    const std::size_t groups = ceil_div(rows, kGroupRows), bytes = whole_lines(bytes_of_x(job, rows));
    const std::size_t sums = ManyRows<kParts>::sums(ceil_div(job.inputs, kStep), rows);
    std::uint8_t* memory = scratch(bytes + sums * sizeof(float) * threads_for(work));
    const PackedX x = pack<T>(job, rows, memory);
    in_many_parts(job, groups, sums, work, [&](const Part& part, std::size_t worker) {
        ManyRows<kParts>(job, x, rows, part, reinterpret_cast<float*>(memory + bytes) + worker * sums).run();
    });
}

template <class T>
void multiply_int8(const Product& job, std::size_t rows) {
    const std::size_t work = rows * job.inputs * job.outputs, panels = ceil_div(job.y_width(), kWidth);
    if (rows <= kGroupRows) {
        const ByteX x = pack_bytes<T>(job, rows, scratch(bytes_of_planes(job, rows)));
        return in_runs(panels, 1, threads_for(work), [&](std::size_t begin, std::size_t end) {
            ByteRows(job, x, rows).few(begin, end);
        });
    }
    const std::size_t row_tiles = ceil_div(rows, kTileRows), bytes = whole_lines(bytes_of_planes(job, rows));
    const std::size_t kept = ByteRows::kept(ceil_div(job.inputs, kStretch), row_tiles);
    std::uint8_t* memory = scratch(bytes + kept * sizeof(float) * threads_for(work));
    const ByteX x = pack_bytes<T>(job, rows, memory);
    in_many_parts(job, row_tiles, kept, work, [&](const Part& part, std::size_t worker) {
        ByteRows(job, x, rows).many(part, reinterpret_cast<float*>(memory + bytes) + worker * kept);
    });
}

void multiply(const Product& job, std::size_t rows) {
    const bool f32 = job.type == Float::f32;
    const auto some = job.scales ? f32 ? multiply_int8<float> : multiply_int8<std::uint16_t>
                                 : f32 ? multiply_bf16<float> : multiply_bf16<std::uint16_t>;
    const std::size_t line = job.y_width() * bytes_of(job.type);
    const auto piece = [&](std::size_t row, std::size_t count) {
        Product some_rows = job.from(row);
        some_rows.streams = rows > kGroupRows && std::min(rows, kMostRows) * line > kStreamed && line % kCacheLine == 0 &&
                            reinterpret_cast<std::uintptr_t>(job.y) % kCacheLine == 0;
        some(some_rows, count);
    };
    const std::size_t threads = threads_for(rows * job.inputs * job.outputs);
    if (threads > 1 && job.outputs <= kFewOutputs && rows >= kTurns * threads * kOwnRows) {
        const std::size_t pieces = ceil_div(rows, kOwnRows);
        return parallel(pieces, threads, [&](std::size_t i, std::size_t) {
            const std::size_t first = rows * i / pieces;
            piece(first, rows * (i + 1) / pieces - first);
        });
    }
    const bool several = job.scales ? ceil_div(job.inputs, kStretch) > kMostStretches
                                    : kMostRows * ceil_div(job.inputs, kStep) * tiles::kRowBytes > kBytesOfX;
    in_pieces(rows, several ? kLongRows : kMostRows, piece);
}

}  // namespace amx

const LinearLevel kAmxLevel = {layout_of<amx::TilePlaces>(), amx::kMostRows, true, amx::multiply, amx::multiply_groups};

}  // namespace kvtrove
#endif
