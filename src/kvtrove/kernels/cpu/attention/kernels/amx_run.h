// What the level of tiles offers to work.cpp. Included by levels/avx512.cpp inside its namespace, last.

// use(stages on tiles) for a side that takes them; else returns false.
template <class Halves, template <bool> class Bytes, class Use>
bool with_tiles(const Side& side, const Step& step, Configuration& registers, const Use& use) {
    if (!on_tiles(side, step)) return false;
    const auto with = [&](auto&& stages) { use(stages); };
    if (side.stored == Element::int8) with(Bytes<false>(step, registers));
    else if (side.stored == Element::int4) with(Bytes<true>(step, registers));
    else with(Halves(step, registers));
    return true;
}

template <class Use>
void with_keys(const Step& step, Configuration& registers, const Use& use) {
    const Side& k = step.layer.k;
    if (!with_tiles<Bfloat16Keys, ByteKeys>(k, step, registers, use)) with_vector_keys(k, use);
}

template <class Use>
void with_values(const Step& step, Configuration& registers, const Use& use) {
    const Side& v = step.layer.v;
    if (!with_tiles<Bfloat16Values, ByteValues>(v, step, registers, use)) with_vector_values(v, use);
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
