// From products to weights, one row of a chunk at a time. Scores are logarithms to base 2: the factor log2(e) rides on
// them. Included by each level inside its namespace, after vector.h and ahead.h.

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kNothing = -1e30f;  // maximum over no scores; finite, so that differences are never NaN

// Largest whole number that a query's element or a weight becomes beside int8: 128 * high + low, both signed bytes, so
// that matrix units take it as two rows of bytes.
constexpr float kMostWhole = 127 * 128;

// The tokens of a tile that a row reads, relative to its first: [first, end) and those of [0, end) below `sinks`.
struct Visible {
    float first, end, sinks;
};

INLINE void mask_tile(float* scores, const Visible& seen) {
    F at;
    for (int i = 0; i < W; ++i) at[i] = static_cast<float>(i);
    for (int j = 0; j < kTile; j += W, at += all(static_cast<float>(W))) {
        const I reads = ((at >= all(seen.first)) | (at < all(seen.sinks))) & (at < all(seen.end));
        store(scores + j, reads ? load(scores + j) : all(-std::numeric_limits<float>::infinity()));
    }
}

// cap * tanh(score / cap), of scores that arrive as 2 log2(e) score / cap.
inline void cap_row(float* scores, int count, float softcap) {
    const F one = all(1.0f), cap = all(softcap * kLog2E);
    for (int j = 0; j < count; j += W) {
        const F e = exp2(smaller(larger(load(scores + j), all(-126.0f)), all(126.0f)));
        store(scores + j, cap * (one - all(2.0f) / (one + e)));
    }
}

// Products of a row become scores: score(j) gives those from j on. Returns the largest per lane.
template <class Score>
INLINE F score_row(float* scores, int count, const Score& score) {
    F most = all(kNothing);
    for (int j = 0; j < count; j += W) {
        const F here = score(j);
        store(scores + j, here);
        most = larger(here, most);
    }
    return most;
}

INLINE F largest_in_row(const float* scores, int count) {
    F most = all(kNothing);
    for (int j = 0; j < count; j += W) most = larger(load(scores + j), most);
    return most;
}

// What makes scores logarithms of weights: a factor, then the largest score of all chunks so far, which they lie below.
struct Below {
    F factor, largest;

    Below(float factor, float largest) : factor(all(factor)), largest(all(largest)) {}
    INLINE F operator()(const float* scores) const { return fma(load(scores), factor, F{} - largest); }
};

// Scores become weights. keep(j, weights): stores those from j on, and returns what the sum gets. Returns the sum per lane.
template <class Keep>
INLINE F weigh_row(const float* scores, int count, const Below& below, Ahead& ahead, const Keep& keep) {
    F total = F{};
    constexpr int some = 4 * kTile;
    for (int begin = 0; begin < count; begin += some) {
        ahead.ask(some * kScoreBytes);
        for (int j = begin; j < std::min(count, begin + some); j += W) total += keep(j, exp2(below(scores + j)));
    }
    return total;
}

// Weights that were multiplied with the value scales of their tokens, `largest` of them the largest, as whole numbers from
// 0 to kMostWhole: put(j, numbers) stores those from j on. Returns the factor that takes sums back. Rounding is at most
// 2^-15 of the chunk's largest weight.
template <class Put>
INLINE float quantise_row(const float* weights, int count, F most, const Put& put) {
    const float largest = std::max(largest_of(most), 1e-30f);
    const F factor = all(kMostWhole / largest), half = all(0.5f);
    for (int j = 0; j < count; j += W) {
        put(j, __builtin_convertvector(load(weights + j) * factor + half, I));
    }
    return largest / kMostWhole;
}

typedef std::int32_t HalfI __attribute__((vector_size(2 * W)));
typedef std::int32_t UnalignedHalfI __attribute__((vector_size(2 * W), aligned(4), may_alias));

// Whole numbers of 16 bits in the pairs that Int8 multiplies: per four tokens (0, 2) and (1, 3).
template <int... K>
INLINE void store_pairs(std::int32_t* pairs, I whole, std::integer_sequence<int, K...>) {
    const HalfI lower = __builtin_shufflevector(whole, whole, (K / 2 * 4 + K % 2)...);
    const HalfI upper = __builtin_shufflevector(whole, whole, (K / 2 * 4 + K % 2 + 2)...);
    *reinterpret_cast<UnalignedHalfI*>(pairs) = lower | upper << 16;
}

INLINE void store_pairs(std::int32_t* pairs, I whole) {
    store_pairs(pairs, whole, std::make_integer_sequence<int, W / 2>{});
}

// (best, sum, values) of one set of keys and of another become those of both.
inline void merge_row(float& best, float& sum, float* values, float best2, float sum2, const float* values2, int dim) {
    const float now = std::max(best, best2), mine = exp2(best - now), other = exp2(best2 - now);
    best = now;
    sum = sum * mine + sum2 * other;
    for (int d = 0; d < dim; d += W) store(values + d, load(values + d) * all(mine) + load(values2 + d) * all(other));
}
