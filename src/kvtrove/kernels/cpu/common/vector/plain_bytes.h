// Bytes in lanes, in plain C++. Included by a level inside its namespace, after types.h.

// sum plus the products of unsigned and signed bytes, four neighbours added.
INLINE I add_quads(I sum, I positive, I any) {
    for (int i = 0; i < 4; ++i) sum += (positive >> (8 * i) & 255) * ((I)((U)any << (24 - 8 * i)) >> 24);
    return sum;
}

// The lowest byte of each lane.
INLINE void store_bytes(std::int8_t* to, I x) {
    for (int i = 0; i < W; ++i) to[i] = static_cast<std::int8_t>(x[i]);
}
