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

// Halves of two vectors joined: of a in the lanes without Step in their number, of b in the others.
template <class Joined, int Step, int... I>
INLINE F joined_pair(F a, F b, std::integer_sequence<int, I...>) {
    return Joined::of(__builtin_shufflevector(a, b, (I & Step ? W + (I ^ Step) : I)...),
                      __builtin_shufflevector(a, b, (I & Step ? W + I : I | Step)...));
}

template <class Joined, int Step = W / 2>
INLINE F joined_all(F* x) {
    for (int i = 0; i < Step; ++i) x[i] = joined_pair<Joined, Step>(x[i], x[i + Step], std::make_integer_sequence<int, W>{});
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

// How the elements of a tile become lanes. A tile is a matrix whose rows are elements of keys, or tokens of values; it is
// stored as [rows / pack][columns][pack]. One step takes kRows rows at a column, in kParts parts: the lanes of each are
// multiplied with one number of x. kStep: numbers T of a column that a step takes; kBytes: those it is the first to read.
struct Float32 {
    using T = float;
    using X = float;
    using Lanes = F;
    static constexpr int kPack = 1, kRows = 2, kParts = 2, kStep = 2, kBytes = 8;
    template <int P>
    INLINE static F part(const T* p, std::ptrdiff_t columns) { return load(p + P * columns); }
    INLINE static F add(F sum, F x, F lanes) { return fma(x, lanes, sum); }
};

struct Bfloat16 : Float32 {
    using T = std::uint16_t;
    static constexpr int kPack = 2, kBytes = 4;
    INLINE static I pairs(const T* p) { return load(reinterpret_cast<const std::int32_t*>(p)); }
    template <int P>
    INLINE static F part(const T* p, std::ptrdiff_t) { return (F)(P ? pairs(p) & all(-65536) : pairs(p) << 16); }
};

struct Float16 : Bfloat16 {
    template <int P>
    INLINE static F part(const T* p, std::ptrdiff_t) { return float_of_float16s(P ? (I)((U)pairs(p) >> 16) : pairs(p)); }
};

// Four rows at a time: a 32-bit lane holds bytes 0..3, the parts are pairs of 16-bit numbers, bytes (0, 2) and (1, 3), and x
// has the same pairs. Sums are exact.
struct Int8 {
    using T = std::int8_t;
    using X = std::int32_t;
    using Lanes = I;
    static constexpr int kPack = 4, kRows = 4, kParts = 2, kStep = 4, kBytes = 4;
    INLINE static I lanes(const T* p) { return load(reinterpret_cast<const std::int32_t*>(p)); }
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t) { return (I)((P ? (S)lanes(p) : (S)lanes(p) << 8) >> 8); }
    INLINE static I add(I sum, I x, I lanes) { return add_pairs(sum, x, lanes); }
};

// The same where products of bytes are an instruction: signed ones as unsigned ones, 128 too large, beside x in planes of bytes.
struct ByteQuads : Int8 {
    static constexpr int kParts = 1;
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t) { return lanes(p) ^ all(static_cast<std::int32_t>(0x80808080)); }
    INLINE static I add(I sum, I x, I lanes) { return add_quads(sum, lanes, x); }
};

// Codes of four bits, two in each byte of what would be Int8. `High`: the upper ones.
template <bool High>
struct HalfBytes : Int8 {
    static constexpr int kBytes = 2;
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t) { return (lanes(p) >> (8 * P + 4 * High)) & all(0x000F000F); }
};

// Both: lower ones are rows of the first half of a key, upper ones of the second.
struct Int4 : Int8 {
    static constexpr int kRows = 8, kParts = 4;
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t columns) { return HalfBytes<(P >= 2)>::template part<P % 2>(p, columns); }
};

template <bool High>
struct HalfQuads : ByteQuads {
    static constexpr int kBytes = 2;
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t) { return (lanes(p) >> (4 * High)) & all(0x0F0F0F0F); }
};

struct Int4Quads : ByteQuads {
    static constexpr int kRows = 8, kParts = 2;
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t columns) { return HalfQuads<P == 1>::template part<0>(p, columns); }
};

// How a level multiplies what is stored as Format: `planes` of x are rows of their own.
template <class Format>
struct Multiplied {
    using Type = Format;
    static constexpr int planes = 1;
};
template <>
struct Multiplied<Int8> {
    using Type = std::conditional_t<kByteProducts, ByteQuads, Int8>;
    static constexpr int planes = kByteProducts ? 2 : 1;
};
template <>
struct Multiplied<Int4> {
    using Type = std::conditional_t<kByteProducts, Int4Quads, Int4>;
    static constexpr int planes = kByteProducts ? 2 : 1;
};
template <bool High>
using HalfCodes = std::conditional_t<kByteProducts, HalfQuads<High>, HalfBytes<High>>;
