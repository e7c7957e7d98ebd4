// What each level offers to work.cpp. Included by each level inside its namespace, last.

// use(how `side` is read)
template <class Use>
void with_reading(const Side& side, const Use& use) {
    switch (side.stored) {
        case Element::float32: return side.tiled ? use(TiledFloat32()) : use(PlainFloat32());
        case Element::float16: return side.tiled ? use(TiledFloat16()) : use(PlainFloat16());
        case Element::bfloat16: return side.tiled ? use(TiledBfloat16()) : use(PlainBfloat16());
        case Element::int8: return side.tiled ? use(TiledInt8()) : use(PlainInt8());
        case Element::float8: return use(Unpacked<Float8>());
        case Element::int4:
            if (side.channels) return use(Unpacked<Codes<4>, true>());
            return side.groups() == 1 ? use(TiledInt4()) : use(Unpacked<Codes<4>>());
        case Element::int2: return side.channels ? use(Unpacked<Codes<2>, true>()) : use(Unpacked<Codes<2>>());
    }
}

// use(stages for keys)
template <class Use>
void with_vector_keys(const Side& side, const Use& use) {
    with_reading(side, [&](auto reading) {
        VectorKeys<decltype(reading)> keys;
        use(keys);
    });
}

// use(stages for values)
template <class Use>
void with_vector_values(const Side& side, const Use& use) {
    with_reading(side, [&](auto reading) {
        VectorValues<decltype(reading)> values;
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

inline std::size_t workspace_floats(const Layer& layer, int max_rows) { return Workspace().carve(layer, max_rows, nullptr); }

constexpr Level level() { return {kBand, workspace_floats, choice_floats, choose, attend, merge}; }
