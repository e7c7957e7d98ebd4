// What lies in tiles beside weights: x, packed, and sums. Included by levels/amx.cpp inside its namespace, first.

constexpr std::size_t kTileRows = tiles::kRows;      // of x
constexpr std::size_t kSums = kTileRows * kColumns;  // numbers in a tile of sums

// x in operands A: [tiles of 16 rows][steps][parts], tiles of `tile` bytes. Packed once per call, for all threads: rows
// whose stride is a multiple of 4096 bytes would push each other out of L1, and a tile could not end where a row does.
struct PackedX {
    const std::uint8_t* at;
    std::size_t steps, parts, tile;

    const std::uint8_t* find(std::size_t row_tile, std::size_t step) const {
        return at + (row_tile * steps + step) * parts * tile;
    }
    std::size_t row_tile_bytes() const { return steps * parts * tile; }
};
