// Products of linear/groups.h for one instruction set: included once per level by linear/groups.cpp, in a namespace of its own
// that has a `Dot`, with
//   KVTROVE_TARGET  attribute that allows the instructions        KVTROVE_LANES  float32 lanes of a vector
//   KVTROVE_ROWS    rows whose sums fit into the registers        KVTROVE_HALVES(from)  float16 numbers as float32

constexpr std::size_t kLanes = KVTROVE_LANES, kParts = kWidth / kLanes;  // vectors of a panel
constexpr int kWritten = kParts > 4 ? 1 : 8;  // of them one after the other; more have no registers anyhow

typedef float Floats __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * KVTROVE_LANES)));
typedef std::int8_t Bytes __attribute__((vector_size(KVTROVE_LANES)));

template <class T>
KVTROVE_TARGET void pack_stretch(const T* x, std::size_t count, Stretch& to) {
    alignas(64) float values[kStretch] = {};
    for (std::size_t i = 0; i < count; ++i) values[i] = widened(x[i]);
    Floats line, most = {}, poison = {};
    for (std::size_t i = 0; i < kStretch; i += kLanes) {
        std::memcpy(&line, values + i, sizeof line);
        const Floats size = line < 0 ? -line : line;
        most = size > most ? size : most;
        poison += line * 0.0f;
    }
    float largest = 1e-30f, bad = 0;
    for (std::size_t i = 0; i < kLanes; ++i) largest = std::max(largest, most[i]), bad += poison[i];
    const float factor = kMostX / largest;
    const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    for (std::size_t group = 0; group < kGroups; ++group) {
        Ints sum = {};
        for (std::size_t i = group * kGroup; i < (group + 1) * kGroup; i += kLanes) {
            std::memcpy(&line, values + i, sizeof line);
            const Ints whole = reinterpret_cast<Ints>(line * factor + magic) - 0x4B400000, top = (whole + 64) >> 7;
            const Bytes high = __builtin_convertvector(top, Bytes);
            const Bytes low = __builtin_convertvector(whole - (top << 7), Bytes);
            std::memcpy(to.high + i, &high, sizeof high), std::memcpy(to.low + i, &low, sizeof low);
            sum += whole;
        }
        std::int32_t all = 0;
        for (std::size_t i = 0; i < kLanes; ++i) all += sum[i];
        to.sums[group] = static_cast<float>(all);
    }
    to.scale = largest / kMostX + bad;
}

// Part `part` of the scales or minima at `from`.
template <Form Of>
[[gnu::always_inline]] KVTROVE_TARGET inline Floats floats_at(const std::uint8_t* from, std::size_t part) {
    from += part * kLanes * scale_bytes(Of);
    if constexpr (is_wide(Of)) {
        Floats values;
        std::memcpy(&values, from, sizeof values);
        return values;
    } else {
        return KVTROVE_HALVES(from);
    }
}

// totals [rows][32] += what `groups` groups of a panel give for a stretch of some rows.
template <std::size_t Rows, Form Of>
__attribute__((noinline)) KVTROVE_TARGET void add_stretch(const Stretch* x, const std::uint8_t* panel, std::size_t groups,
                                                          std::size_t ahead, float* totals) {
    Floats sums[Rows][kParts] = {};
    for (std::size_t g = 0; g < groups; ++g, panel += group_bytes(Of)) {
        for (std::size_t line = 0; line < group_bytes(Of); line += kCacheLine) {
            __builtin_prefetch(panel + ahead + line);
        }
#pragma GCC unroll kWritten
        for (std::size_t part = 0; part < kParts; ++part) {
            using Sums = Dot<has_bytes(Of), has_codes(Of)>;
            Sums dots[Rows];
#pragma GCC unroll 8
            for (std::size_t row = 0; row < kGroup / word_inputs(Of); ++row) {
                const std::uint8_t* words = panel + head_bytes(Of) + row * kWordsBytes + part * 4 * kLanes;
                const auto numbers = Sums::unpack(words);
                const std::size_t at = g * kGroup + row * word_inputs(Of);
#pragma GCC unroll 8
                for (std::size_t r = 0; r < Rows; ++r) dots[r].add(numbers, x[r].high + at, x[r].low + at);
            }
            const Floats scale = floats_at<Of>(panel, part);
            Floats minimum = {};
            if constexpr (has_minima(Of)) minimum = floats_at<Of>(panel + scales_bytes(Of), part);
            constexpr std::int32_t kAbove = has_minima(Of) ? 0 : has_codes(Of) ? Sums::kAbove : zero_of(Of);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < Rows; ++r) {
                Ints whole = reinterpret_cast<Ints>(dots[r].total());
                if constexpr (kAbove) whole -= static_cast<std::int32_t>(kAbove * x[r].sums[g]);
                const Floats dot = scale * __builtin_convertvector(whole, Floats);
                sums[r][part] += has_minima(Of) ? dot + minimum * x[r].sums[g] : dot;
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll kWritten
        for (std::size_t part = 0; part < kParts; ++part) {
            float* at = totals + r * kWidth + part * kLanes;
            Floats total;
            std::memcpy(&total, at, sizeof total);
            total += sums[r][part] * x[r].scale;
            std::memcpy(at, &total, sizeof total);
        }
    }
}

template <Form Of, std::size_t Rows = KVTROVE_ROWS>
KVTROVE_TARGET inline void with_rows(std::size_t rows, const Stretch* x, const std::uint8_t* panel, std::size_t groups,
                                     std::size_t ahead, float* totals) {
    if (rows == Rows) {
        add_stretch<Rows, Of>(x, panel, groups, ahead, totals);
    } else if constexpr (Rows > 1) {
        with_rows<Of, Rows - 1>(rows, x, panel, groups, ahead, totals);
    }
}

// Whole panels are copied by a size that the compiler knows.
template <class T>
[[gnu::always_inline]] KVTROVE_TARGET inline void copy_line(const Product& job, std::size_t row, std::size_t first, const T* line) {
    T* y = static_cast<T*>(job.y) + row * job.outputs + first;
    if (first + kWidth <= job.outputs) std::memcpy(y, line, kWidth * sizeof(T));
    else std::copy_n(line, job.outputs - first, y);
}

KVTROVE_TARGET void write_rows(const Product& job, std::size_t row, std::size_t rows, std::size_t panel, const float* totals) {
    const std::size_t first = panel * kWidth;
    float bias[kWidth] = {};
    if (job.bias) std::copy_n(job.bias + first, std::min(kWidth, job.outputs - first), bias);
    for (const std::size_t end = row + rows; row < end; ++row, totals += kWidth) {
        float line[kWidth];
        for (std::size_t n = 0; n < kWidth; ++n) line[n] = job.bias ? totals[n] + bias[n] : totals[n];
        if (job.type == Float::f32) {
            copy_line(job, row, first, line);
            continue;
        }
        std::uint16_t rounded[kWidth];
        for (std::size_t n = 0; n < kWidth; ++n) rounded[n] = bfloat16_of_float(line[n]);
        copy_line(job, row, first, rounded);
    }
}

// Rows and panels of a part. x: [stretches][all rows]. A stretch of a panel stays in L1 while all rows meet it.
template <Form Of>
KVTROVE_TARGET void run(const Product& job, const Stretch* x, std::size_t all_rows, const Part& part) {
    alignas(64) float totals[kMostRows * kWidth];
    const std::size_t rows = part.row_end - part.row, row_groups = ceil_div(rows, std::size_t{KVTROVE_ROWS});
    const std::size_t groups = ceil_div(job.inputs, kGroup);
    for (std::size_t panel = part.panel; panel < part.panel_end; ++panel) {
        std::fill_n(totals, rows * kWidth, 0.0f);
        const std::uint8_t* weights = job.weights + panel * job.panel_bytes;
        for (std::size_t first = 0; first < groups; first += kGroups) {
            const Stretch* of = x + first / kGroups * all_rows + part.row;
            for (std::size_t i = 0; i < row_groups; ++i) {
                const std::size_t row = rows * i / row_groups, count = rows * (i + 1) / row_groups - row;
                with_rows<Of>(count, of + row, weights + first * group_bytes(Of), std::min(kGroups, groups - first),
                                i ? 0 : kAhead, totals + row * kWidth);
            }
        }
        write_rows(job, part.row, rows, panel, totals);
    }
}

// All stretches of rows `row` .. `row_end`, of `rows`.
template <class T>
KVTROVE_TARGET void pack_rows(const Product& job, std::size_t row, std::size_t row_end, std::size_t rows, Stretch* to) {
    for (; row < row_end; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.inputs;
        for (std::size_t k = 0; k < job.inputs; k += kStretch) {
            pack_stretch(x + k, std::min(kStretch, job.inputs - k), to[k / kStretch * rows + row]);
        }
    }
}

constexpr Means kMeans = {{pack_rows<float>, pack_rows<std::uint16_t>},
                         {run<Form::nibbles>, run<Form::nibbles_f32>, run<Form::bytes>, run<Form::bytes_f32>,
                          run<Form::codes>, run<Form::nibbles_symmetric>},
                         write_rows};
