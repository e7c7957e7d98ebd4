// How numbers are multiplied as they are stored. Included by each level inside its namespace, after
// common/vector/vector.h.

// How the elements of a tile become lanes. A tile is a matrix whose rows are elements of keys, or tokens of values; it is
// stored as [rows / pack][columns][pack]. One step takes kRows rows at a column, in kParts parts: the lanes of each are
// multiplied with one number of x. kStep: numbers T of a column that a step takes; kBytes: those it is the first to read.
// kPlanes: rows of x that one row becomes.
struct Float32 {
    using T = float;
    using X = float;
    using Lanes = F;
    static constexpr int kPack = 1, kRows = 2, kParts = 2, kStep = 2, kBytes = 8, kPlanes = 1;
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
    INLINE static F part(const T* p, std::ptrdiff_t) { return float_of_float16s(__builtin_convertvector((U)pairs(p) >> (16 * P), H)); }
};

// Four rows at a time: a 32-bit lane holds bytes 0..3, the parts are pairs of 16-bit numbers, bytes (0, 2) and (1, 3), and x
// has the same pairs. Sums are exact.
struct Int8 {
    using T = std::int8_t;
    using X = std::int32_t;
    using Lanes = I;
    static constexpr int kPack = 4, kRows = 4, kParts = 2, kStep = 4, kBytes = 4, kPlanes = 1;
    INLINE static I lanes(const T* p) { return load(reinterpret_cast<const std::int32_t*>(p)); }
    template <int P>
    INLINE static I part(const T* p, std::ptrdiff_t) { return (I)((P ? (S)lanes(p) : (S)lanes(p) << 8) >> 8); }
    INLINE static I add(I sum, I x, I lanes) { return add_pairs(sum, x, lanes); }
};

// The same where products of bytes are an instruction: signed ones as unsigned ones, 128 too large, beside x in planes of bytes.
struct ByteQuads : Int8 {
    static constexpr int kParts = 1, kPlanes = 2;
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

// How a level multiplies what is stored as Format.
template <class Format>
struct Multiplied {
    using Type = Format;
};
template <>
struct Multiplied<Int8> {
    using Type = std::conditional_t<kByteProducts, ByteQuads, Int8>;
};
template <>
struct Multiplied<Int4> {
    using Type = std::conditional_t<kByteProducts, Int4Quads, Int4>;
};
template <bool High>
using HalfCodes = std::conditional_t<kByteProducts, HalfQuads<High>, HalfBytes<High>>;
