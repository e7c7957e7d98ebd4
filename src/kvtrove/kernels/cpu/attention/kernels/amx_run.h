// What the level of tiles offers to work.cpp. Included by levels/avx512.cpp inside its namespace, last.

template <class Stages, class Use>
void with_tiles(const Step& step, Configuration& registers, const Use& use) {
    Stages stages(step, registers);
    use(stages);
}

template <class Use>
void with_keys(const Step& step, Configuration& registers, const Use& use) {
    const Side& k = step.layer.k;
    if (!on_tiles(k, step)) return with_vector_keys(k, use);
    if (k.stored == Element::int8) return with_tiles<ByteKeys<false>>(step, registers, use);
    if (k.stored == Element::int4) return with_tiles<ByteKeys<true>>(step, registers, use);
    with_tiles<Bfloat16Keys>(step, registers, use);
}

template <class Use>
void with_values(const Step& step, Configuration& registers, const Use& use) {
    const Side& v = step.layer.v;
    if (!on_tiles(v, step)) return with_vector_values(v, use);
    if (v.stored == Element::int8) return with_tiles<ByteValues<false>>(step, registers, use);
    if (v.stored == Element::int4) return with_tiles<ByteValues<true>>(step, registers, use);
    with_tiles<Bfloat16Values>(step, registers, use);
}

inline void attend_on_tiles(const Step& step, const Run& run, float* workspace) {
    Configuration registers;
    with_keys(step, registers, [&](Keys& keys) {
        with_values(step, registers, [&](Values& values) { attend_run(keys, values, step, run, workspace); });
    });
}

constexpr int kTileBand = 32;  // rows

// Four bands of a prompt share what is fetched of K and V.
constexpr Level level_of_tiles() {
    return {kTileBand, 4 * kTileBand, workspace_floats, tile_choice_floats, choose_on_tiles, attend_on_tiles, merge};
}
