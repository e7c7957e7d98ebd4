// Vectors of W numbers for one instruction-set level. No include guard: each level includes this inside a namespace of
// its own, after W and the primitives of lanes are declared (portable.cpp is the smallest example).
//
// The types are vector extensions of gcc and clang: operators work lane by lane, comparisons give lanes of 0 or -1.

template <int I>
using Number = std::integral_constant<int, I>;

template <class F, int... I>
INLINE void each_of(F&& f, std::integer_sequence<int, I...>) {
    (f(Number<I>{}), ...);
}

// f(0), ..., f(Count - 1), unrolled: numbers of registers are constants.
template <int Count, class F>
INLINE void each(F&& f) {
    each_of(f, std::make_integer_sequence<int, Count>{});
}

INLINE F load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
INLINE I load(const std::int32_t* p) { return *reinterpret_cast<const UnalignedI*>(p); }
INLINE void store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
INLINE void store(std::int32_t* p, I x) { *reinterpret_cast<UnalignedI*>(p) = x; }
INLINE F all(float x) { return x - F{}; }
INLINE I all(std::int32_t x) { return x - I{}; }
INLINE F smaller(F a, F b) { return a < b ? a : b; }

// The numbers of x in another order: lanes i and i ^ Step trade places.
template <int Step, int... I>
INLINE F trade(F x, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, x, (I ^ Step)...);
}

struct Sum {
    INLINE static F of(F a, F b) { return a + b; }
};

struct Largest {
    INLINE static F of(F a, F b) { return larger(a, b); }
};

// Halves joined until one number is left: one order for all levels of equal W.
template <class Joined, int Step = W / 2>
INLINE float joined(F x) {
    x = Joined::of(x, trade<Step>(x, std::make_integer_sequence<int, W>{}));
    if constexpr (Step > 1) return joined<Joined, Step / 2>(x);
    else return x[0];
}

INLINE float sum_of(F x) { return joined<Sum>(x); }
INLINE float largest_of(F x) { return joined<Largest>(x); }

// Lanes with Step in their number trade places with those of the other vector without: two steps of a transposition.
template <int Step, int... I>
INLINE void trade_halves(F& a, F& b, std::integer_sequence<int, I...>) {
    const F first = __builtin_shufflevector(a, b, (I & Step ? W + (I ^ Step) : I)...);
    b = __builtin_shufflevector(a, b, (I & Step ? W + I : I | Step)...);
    a = first;
}

// Halves of two vectors joined: of a in the lanes without Step in their number, of b in the others.
template <class Joined, int Step>
INLINE F joined_pair(F a, F b) {
    trade_halves<Step>(a, b, std::make_integer_sequence<int, W>{});
    return Joined::of(a, b);
}

template <class Joined, int Step = W / 2>
INLINE F joined_all(F* x) {
    for (int i = 0; i < Step; ++i) x[i] = joined_pair<Joined, Step>(x[i], x[i + Step]);
    if constexpr (Step > 1) return joined_all<Joined, Step / 2>(x);
    else return x[0];
}

// Up to W vectors at once, which are lost: lane i is joined(x[i]), the same bits either way.
template <class Joined>
INLINE F joined_each(F* x, int count) {
    if (count > W / 4) return joined_all<Joined>(x);
    F lanes = F{};
    for (int i = 0; i < count; ++i) lanes[i] = joined<Joined>(x[i]);
    return lanes;
}

// Lane j of vector i becomes lane i of vector j, for W vectors.
template <int Step = W / 2>
INLINE void transpose(F* x) {
    each<W>([&](auto i) __attribute__((always_inline)) {
        if constexpr (!(decltype(i)::value & Step))
            trade_halves<Step>(x[decltype(i)::value], x[decltype(i)::value + Step], std::make_integer_sequence<int, W>{});
    });
    if constexpr (Step > 1) transpose<Step / 2>(x);
}

// 2^x for x <= 127, within 2^-22; 0 below -126, so that no subnormal number ever enters a product.
INLINE F exp2(F x) {
    const F magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, which ends up in the lowest bits
    const F shifted = x + magic;
    const F f = x - (shifted - magic);   // in [-1/2, 1/2]
    F y = all(1.540353039e-4f);          // Taylor series of 2^f: ln(2)^k / k!
    y = fma(y, f, all(1.333355815e-3f));
    y = fma(y, f, all(9.618129108e-3f));
    y = fma(y, f, all(5.550410866e-2f));
    y = fma(y, f, all(2.402265070e-1f));
    y = fma(y, f, all(6.931471806e-1f));
    y = fma(y, f, all(1.0f));
    const I power = (I)((U)y + ((U)shifted << 23));
    return x < all(-126.0f) ? F{} : (F)power;
}

INLINE float exp2(float x) { return exp2(all(x))[0]; }
