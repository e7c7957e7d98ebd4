// The chunks of K and V that a thread reads, one after the other. Included by each level inside its namespace, after gather.h
// and ahead.h.

// Where the slots of a chunk lie, for a side in tiled layout.
struct Places {
    const std::uint8_t *data[kChunk / kTile], *scale[kChunk / kTile], *zero[kChunk / kTile];
};

// Up to kChunk tokens of one split of one item.
struct Chunk {
    std::int32_t item = -1;  // -1: there is none
    std::int64_t split = 0;
    int count = 0;
    bool masked = false;  // some slot is
    Slot slots[kChunk / kTile];
    Places k, v;
};

// What the queries of a tile read.
struct Span {
    std::int64_t first, first_of_last, end_of_first, end, sinks;

    Span(const Layer& layer, const Tile& tile)
        : first(layer.reach.first(tile.position)), first_of_last(layer.reach.first(tile.position + tile.tokens - 1)),
          end_of_first(layer.reach.end(tile.position)), end(layer.reach.end(tile.position + tile.tokens - 1)),
          sinks(layer.reach.sinks) {}

    Slot slot(std::int64_t begin) const {
        std::uint32_t live = kAllLive;
        if (begin < first || begin + kTile > end) {
            live = 0;
            for (int j = 0; j < kTile; ++j) {
                const std::int64_t at = begin + j;
                live |= static_cast<std::uint32_t>(at < end && (at >= first || at < sinks)) << j;
            }
        }
        const bool all_read = begin >= first_of_last || begin + kTile <= sinks;
        return {begin, live, live != kAllLive || begin + kTile > end_of_first || !all_read};
    }
};

// Chunks in the order in which a thread reads them: of the items of its run, then of the one that it will probably be given
// next, so that its first lines can be asked for.
class Reader {
public:
    // piece: tokens that come together, a multiple of kTile that divides kChunk.
    Reader(const Step& step, const Run& run, int piece) : step_(step), run_(run), piece_(piece), item_(run.begin) { enter(); }

    // The next chunk that some query reads; its item is -1 when there is none left.
    void next(Chunk& chunk) {
        for (chunk.item = -1, chunk.count = 0; item_ >= 0 && chunk.count == 0;) {
            if (at_ >= end_) {
                leave();
                continue;
            }
            chunk.item = item_, chunk.split = at_ / kSplit;
            fill(chunk);
            at_ += kChunk;
        }
        if (chunk.count == 0) chunk.item = -1;
    }

private:
    void enter() {
        if (item_ < 0) return;
        const Item& item = step_.items[item_];
        tile_ = &step_.tiles[item.tile];
        const std::int64_t first = tile_->first_split + std::max(item.split, 0);
        const std::int64_t splits = item.split < 0 ? tile_->num_splits : 1;
        at_ = first * kSplit;
        end_ = std::min((first + splits) * kSplit, step_.layer.reach.end(tile_->position + tile_->tokens - 1));
    }

    void leave() {
        if (item_ == run_.after) item_ = -1;
        else if (++item_ == run_.end) item_ = run_.after;
        enter();
    }

    // Where one tile of a piece is read, the others come as well, live or not.
    void fill(Chunk& chunk) const {
        const Layer& layer = step_.layer;
        const Span span(layer, *tile_);
        const Blocks blocks{layer, step_.batch.table + tile_->sequence * step_.batch.table_width, tile_->kv_head};
        const Kept& kept = step_.kept;
        const std::int64_t number = tile_ - step_.tiles;
        chunk.count = 0, chunk.masked = false;
        for (std::int64_t begin = at_; begin < std::min(at_ + kChunk, end_); begin += piece_) {
            const std::int64_t block = begin / layer.block_size;
            if (kept && !Kept::has(kept.any(number), block)) continue;
            std::uint32_t live = 0;
            bool masked = kept && !Kept::has(kept.every(number), block);
            for (int j = 0; j < piece_; j += kTile) {
                const Slot slot = span.slot(begin + j);
                live |= slot.live, masked |= slot.masked;
                chunk.slots[chunk.count + j / kTile] = {slot.begin, slot.live, masked};
            }
            if (!live) continue;
            const Spot spot = blocks.spot(begin);
            if (layer.k.tiled) place(layer.k, spot, chunk.count, chunk.k);
            if (layer.v.tiled) place(layer.v, spot, chunk.count, chunk.v);
            chunk.count += piece_ / kTile, chunk.masked |= masked;
        }
    }

    // The slots of a piece, from `slot` on.
    void place(const Side& side, const Spot& spot, int slot, Places& places) const {
        for (int j = 0; j < piece_ / kTile; ++j) {
            const std::int64_t token = spot.token + j * kTile;
            places.data[slot + j] = spot.in(side.data) + token * side.vector_bytes();
            if (!side.scale.data || !side.has_one_scale()) continue;
            places.scale[slot + j] = spot.in(side.scale) + token * kScaleBytes;
            if (side.zero.data) places.zero[slot + j] = spot.in(side.zero) + token * kScaleBytes;
        }
    }

    const Step& step_;
    const Run& run_;
    int piece_, item_;
    const Tile* tile_ = nullptr;
    std::int64_t at_ = 0, end_ = 0;
};

// Asks for `next` during work of so many bytes.
inline void look_ahead(Ahead& ahead, const Layer& layer, const Chunk& next, std::int64_t work) {
    ahead.begin(work);
    const auto add = [&](const std::uint8_t* const* from, std::int64_t bytes) {
        for (int i = 0; i < next.count; ++i) ahead.add(from[i], kTile * bytes);
    };
    const auto add_side = [&](const Side& side, const Places& places) {
        if (!side.tiled) return;
        const bool one = side.scale.data && side.has_one_scale();
        if (one) add(places.scale, kScaleBytes);
        if (one && side.zero.data) add(places.zero, kScaleBytes);
        add(places.data, side.vector_bytes());
    };
    if (next.item >= 0) add_side(layer.k, next.k), add_side(layer.v, next.v);
    ahead.end();
}
