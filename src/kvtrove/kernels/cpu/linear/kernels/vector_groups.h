// Products of linear/groups.h on vectors. Included by each level inside a namespace of its own in groups, where the
// primitives of its lanes are known, and
//   kAtOnce   rows whose sums fit into the registers
//   Dot       sums of products of whole numbers: unpack, add, total

constexpr std::size_t kLanes = W, kParts = kWidth / kLanes;  // vectors of a panel

template <class T>
void pack_stretch(const T* x, std::size_t count, Stretch& to) {
    alignas(64) float values[kStretch] = {};
    for (std::size_t i = 0; i < count; ++i) values[i] = widened(x[i]);
    F line, most = {}, poison = {};
    for (std::size_t i = 0; i < kStretch; i += kLanes) {
        std::memcpy(&line, values + i, sizeof line);
        const F size = line < 0 ? -line : line;
        most = size > most ? size : most;
        poison += line * 0.0f;
    }
    float largest = 1e-30f, bad = 0;
    for (std::size_t i = 0; i < kLanes; ++i) largest = std::max(largest, most[i]), bad += poison[i];
    const float factor = kMostX / largest;
    const F magic = F{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    for (std::size_t group = 0; group < kGroups; ++group) {
        I sum = {};
        for (std::size_t i = group * kGroup; i < (group + 1) * kGroup; i += kLanes) {
            std::memcpy(&line, values + i, sizeof line);
            const I whole = reinterpret_cast<I>(line * factor + magic) - 0x4B400000, top = (whole + 64) >> 7;
            const B high = __builtin_convertvector(top, B);
            const B low = __builtin_convertvector(whole - (top << 7), B);
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
INLINE F floats_at(const std::uint8_t* from, std::size_t part) {
    from += part * kLanes * scale_bytes(Of);
    if constexpr (is_wide(Of)) return load(reinterpret_cast<const float*>(from));
    else return float_of_float16s(*reinterpret_cast<const UnalignedH*>(from));
}

// totals [rows][32] += what `groups` groups of a panel give for a stretch of some rows.
template <std::size_t Rows, Form Of>
__attribute__((noinline)) void add_stretch(const Stretch* x, const std::uint8_t* panel, std::size_t groups,
                                                          std::size_t ahead, float* totals) {
    F sums[Rows][kParts] = {};
    for (std::size_t g = 0; g < groups; ++g, panel += group_bytes(Of)) {
        for (std::size_t line = 0; line < group_bytes(Of); line += kCacheLine) {
            __builtin_prefetch(panel + ahead + line);
        }
#pragma GCC unroll 8
        for (std::size_t part = 0; part < kParts; ++part) {
            Dot<has_bytes(Of)> dots[Rows];
#pragma GCC unroll 8
            for (std::size_t row = 0; row < kGroup / word_inputs(Of); ++row) {
                const std::uint8_t* words = panel + head_bytes(Of) + row * kWordsBytes + part * 4 * kLanes;
                const auto numbers = Dot<has_bytes(Of)>::unpack(words);
                const std::size_t at = g * kGroup + row * word_inputs(Of);
#pragma GCC unroll 8
                for (std::size_t r = 0; r < Rows; ++r) dots[r].add(numbers, x[r].high + at, x[r].low + at);
            }
            const F scale = floats_at<Of>(panel, part);
            F minimum = scale * kNoMinimum;
            if constexpr (has_minima(Of)) minimum = floats_at<Of>(panel + scales_bytes(Of), part);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < Rows; ++r) {
                const F dot = __builtin_convertvector(dots[r].total(), F);
                sums[r][part] += scale * dot + minimum * x[r].sums[g];
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (std::size_t part = 0; part < kParts; ++part) {
            float* at = totals + r * kWidth + part * kLanes;
            F total;
            std::memcpy(&total, at, sizeof total);
            total += sums[r][part] * x[r].scale;
            std::memcpy(at, &total, sizeof total);
        }
    }
}

template <Form Of, std::size_t Rows = kAtOnce>
inline void with_rows(std::size_t rows, const Stretch* x, const std::uint8_t* panel, std::size_t groups,
                                     std::size_t ahead, float* totals) {
    if (rows == Rows) {
        add_stretch<Rows, Of>(x, panel, groups, ahead, totals);
    } else if constexpr (Rows > 1) {
        with_rows<Of, Rows - 1>(rows, x, panel, groups, ahead, totals);
    }
}

// Rows and panels of a part. x: [stretches][all rows]. A stretch of a panel stays in L1 while all rows meet it.
template <Form Of>
void run(const Product& job, const Stretch* x, std::size_t all_rows, const Part& part) {
    alignas(64) float totals[kMostRows * kWidth];
    const std::size_t rows = part.row_end - part.row, row_groups = ceil_div(rows, std::size_t{kAtOnce});
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
void pack_rows(const Product& job, std::size_t row, std::size_t row_end, std::size_t rows, Stretch* to) {
    for (; row < row_end; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.inputs;
        for (std::size_t k = 0; k < job.inputs; k += kStretch) {
            pack_stretch(x + k, std::min(kStretch, job.inputs - k), to[k / kStretch * rows + row]);
        }
    }
}

constexpr Means kMeans = {{pack_rows<float>, pack_rows<std::uint16_t>},
                          {run<Form::nibbles>, run<Form::nibbles_f32>, run<Form::bytes>, run<Form::bytes_f32>}};

inline void multiply(const Product& job, std::size_t rows) { groups::multiply(kMeans, job, rows); }
