// What each level offers to work.cpp. Included by each level inside its namespace, last.

template <class Read>
void attend_as(const Step& step, const Run& run, float* workspace) {
    VectorKeys<Read> keys;
    VectorValues<Read> values;
    attend_run(keys, values, step, run, workspace);
}

inline void attend(const Step& step, const Run& run, float* workspace) {
    const bool tiled = step.layer.tiled;
    switch (step.layer.stored) {
        case Element::float32:
            return tiled ? attend_as<TiledFloat32>(step, run, workspace) : attend_as<PlainFloat32>(step, run, workspace);
        case Element::float16:
            return tiled ? attend_as<TiledFloat16>(step, run, workspace) : attend_as<PlainFloat16>(step, run, workspace);
        case Element::bfloat16:
            return tiled ? attend_as<TiledBfloat16>(step, run, workspace) : attend_as<PlainBfloat16>(step, run, workspace);
        case Element::int8:
            return tiled ? attend_as<TiledInt8>(step, run, workspace) : attend_as<PlainInt8>(step, run, workspace);
    }
}

// The same sums in the same order as attend_item over all splits.
inline void merge(const Step& step, const Tile& tile, float* workspace) {
    const Pass pass(step, tile, workspace);
    const Workspace& work = pass.work;
    const int rows = pass.rows, dim = step.layer.head_dim;
    forget(work.all_best, work.all_sum, work.all_values, rows, dim);
    for (std::int64_t i = 0; i < tile.num_splits; ++i) {
        const float* from = step.partials + (tile.partial + i) * step.partial_floats();
        for (int r = 0; r < rows; ++r)
            merge_row(work.all_best[r], work.all_sum[r], work.all_values + r * dim, from[r], from[rows + r],
                      from + 2 * rows + r * dim, dim);
    }
    write_out(pass, work.all_best, work.all_sum, work.all_values);
}

inline std::size_t workspace_floats(const Layer& layer, int max_rows) { return Workspace().carve(layer, max_rows, nullptr); }

constexpr int kTargetRows = 48;

constexpr Level level() { return {kTargetRows, workspace_floats, attend, merge}; }
