// What each level offers to work.cpp. Included by each level inside its namespace, last.

// use(how `side` is read)
template <class Use>
void with_reading(const Side& side, const Use& use) {
    switch (side.stored) {
        case Element::float32:
            if (side.tiled) return use(InPlace<Float32>());
            return use(Copied<Float32>{copy_plain<Float32>});
        case Element::float16:
            if (side.tiled) return use(InPlace<Float16>());
            return use(Copied<Float32>{copy_plain<Float32, std::uint16_t, float_of_float16>});
        case Element::bfloat16:
            if (side.tiled) return use(InPlace<Bfloat16>());
            return use(Copied<Float32>{copy_plain<Float32, std::uint16_t, float_of_bfloat16>});
        case Element::int8:
            if (side.tiled) return use(InPlace<Int8>());
            return use(Copied<Int8>{copy_plain<Int8>});
        case Element::float8: return use(Copied<Float32>{unpack<Float8>});
        case Element::int4:
            if (side.channels) return use(Copied<Float32>{unpack<Codes<4>, true>});
            if (side.groups() > 1) return use(Copied<Float32>{unpack<Codes<4>>});
            return use(InPlace<Int4>());
        case Element::int2: return use(Copied<Float32>{side.channels ? unpack<Codes<2>, true> : unpack<Codes<2>>});
    }
}

// use(stages for keys)
template <class Use>
void with_vector_keys(const Side& side, const Use& use) {
    with_reading(side, [&](auto reading) {
        VectorKeys<decltype(reading)> keys(reading);
        use(keys);
    });
}

// use(stages for values)
template <class Use>
void with_vector_values(const Side& side, const Use& use) {
    with_reading(side, [&](auto reading) {
        VectorValues<decltype(reading)> values(reading);
        use(values);
    });
}

inline void attend(const Step& step, const Run& run, float* workspace) {
    with_vector_keys(step.layer.k, [&](Keys& keys) {
        with_vector_values(step.layer.v, [&](Values& values) { attend_run(keys, values, step, run, workspace); });
    });
}

// The same sums in the same order as attend_item over all splits.
inline void merge(const Step& step, const Tile& tile, float* workspace) {
    const Pass pass(step, tile, workspace);
    const Workspace& work = pass.work;
    const int rows = pass.rows, dim = step.layer.v.dim;
    forget(work.all_best, work.all_sum, work.all_values, rows, dim);
    for (std::int64_t i = 0; i < tile.num_splits; ++i) {
        const float* from = step.partials + (tile.partial + i) * step.partial_floats();
        merge_rows(work, rows, from, from + rows, from + 2 * rows, dim);
    }
    write_out(pass, work.all_best, work.all_sum, work.all_values);
}

inline std::size_t workspace_floats(const Layer& layer, int max_rows, int band) {
    return Workspace().carve(layer, max_rows, band, nullptr);
}

constexpr int kBand = 48;  // rows

constexpr Level level() { return {kBand, kBand, workspace_floats, choice_floats, choose, attend, merge}; }
