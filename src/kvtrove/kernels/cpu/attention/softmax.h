// From products to weights, one row of a chunk at a time. Scores are logarithms to base 2: the factor log2(e) rides on
// the query. Included by each level inside its namespace, after vector.h.

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kNothing = -1e30f;  // maximum over no scores; finite, so that differences are never NaN
constexpr float kMostInt16 = 32767.0f;

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

// Exact sums of int8 products become scores: times the row's scale and each token's. In place.
inline void rescale_row(float* scores, int count, float row_scale, const float* token_scales) {
    const F factor = all(row_scale);
    for (int j = 0; j < count; j += W) {
        const I exact = load(reinterpret_cast<const std::int32_t*>(scores) + j);
        store(scores + j, __builtin_convertvector(exact, F) * factor * load(token_scales + j));
    }
}

// Scores become weights 2^(score - best), best and sum the maximum and the sum over all chunks so far. keep(j, weights):
// stores those from j on, and returns them as the products will see them. Returns the factor by which everything before
// shrinks.
template <class Keep>
INLINE float weigh_row(const float* scores, int count, float& best, float& sum, const Keep& keep) {
    F most = all(best), total = F{};
    for (int j = 0; j < count; j += W) most = larger(load(scores + j), most);
    const float now = largest_of(most);
    for (int j = 0; j < count; j += W) {
        total += keep(j, exp2(load(scores + j) - all(now)));
    }
    const float shrink = exp2(best - now);
    best = now;
    sum = sum * shrink + sum_of(total);
    return shrink;
}

// Weights times the value scales of their tokens, as whole numbers from 0 to 32767: put(j, numbers) stores those from j
// on. Returns the factor that takes sums back. Rounding is at most 2^-16 of the chunk's largest weight.
template <class Put>
INLINE float quantise_row(float* weights, int count, const float* token_scales, const Put& put) {
    F most = all(1e-30f);
    for (int j = 0; j < count; j += W) {
        const F scaled = load(weights + j) * load(token_scales + j);
        store(weights + j, scaled);
        most = larger(scaled, most);
    }
    const float largest = largest_of(most);
    const F factor = all(kMostInt16 / largest), half = all(0.5f);
    for (int j = 0; j < count; j += W) {
        put(j, __builtin_convertvector(load(weights + j) * factor + half, I));
    }
    return largest / kMostInt16;
}

// Whole numbers of 16 bits in the pairs that Int8 multiplies: per four tokens (0, 2) and (1, 3).
INLINE void store_pairs(std::int32_t* pairs, I whole) {
    std::int32_t four[W];
    store(four, whole);
    for (int i = 0; i < W; i += 4) {
        pairs[i / 2] = four[i] | four[i + 2] << 16;
        pairs[i / 2 + 1] = four[i + 1] | four[i + 3] << 16;
    }
}

// (best, sum, values) of one set of keys and of another become those of both.
inline void merge_row(float& best, float& sum, float* values, float best2, float sum2, const float* values2, int dim) {
    const float now = std::max(best, best2), mine = exp2(best - now), other = exp2(best2 - now);
    best = now;
    sum = sum * mine + sum2 * other;
    for (int d = 0; d < dim; d += W) store(values + d, load(values + d) * all(mine) + load(values2 + d) * all(other));
}
