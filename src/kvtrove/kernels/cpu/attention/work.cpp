#include "attention/work.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/threads.h"

namespace kvtrove::attention {

Scratch::Scratch() = default;
Scratch::~Scratch() = default;

namespace {

constexpr std::size_t kMostPartials = std::size_t{64} << 18;  // floats of partial results: 64 MiB
constexpr std::size_t kLineBytes = 64, kLineFloats = kLineBytes / sizeof(float);
constexpr int kRunsPerThread = 8;                             // so that the last one to finish is not far behind

const Level& level_for(const Layer& layer, Isa isa) {
#if defined(__x86_64__)
    const auto takes = [&](int lanes) {  // parts of a vector of codes are columns of their own
        return layer.k.dim % lanes == 0 && layer.v.dim % (codes_of(layer.v.stored) * lanes) == 0;
    };
    if (isa >= Isa::amx && takes(16)) return kAmx;
    if (isa >= Isa::avx512 && takes(16)) return kAvx512;
    if (isa >= Isa::avx2 && takes(8)) return kAvx2;
#endif
    static_cast<void>(isa), static_cast<void>(layer);
    return kPortable;
}

// Appends the tiles of a sequence, head after head, because the keys of one head stay in the caches for all of its tiles. The
// last tokens come first: they read most.
void cut(const Layer& layer, const Batch& batch, std::int64_t sequence, int target_rows, std::vector<Tile>& tiles) {
    const std::int64_t begin = batch.query_start[sequence], end = batch.query_start[sequence + 1];
    if (begin == end) return;
    const std::int64_t size = std::max(1, target_rows / layer.group());
    const std::size_t first_tile = tiles.size();
    for (std::int64_t first = begin + (end - begin - 1) / size * size; first >= begin; first -= size) {
        Tile tile{};
        tile.sequence = sequence;
        tile.first_token = first;
        tile.tokens = static_cast<int>(std::min(size, end - first));
        tile.position = batch.start[sequence] + first - begin;
        tile.first_split = layer.reach.sinks > 0 ? 0 : layer.reach.first(tile.position) / kSplit;
        const std::int64_t end_of_last = layer.reach.end(tile.position + tile.tokens - 1);
        tile.num_splits = std::max<std::int64_t>(0, (end_of_last + kSplit - 1) / kSplit - tile.first_split);
        tile.partial = -1;
        tiles.push_back(tile);
    }
    const std::size_t of_head = tiles.size() - first_tile;
    for (int head = 1; head < layer.kv_heads; ++head)
        for (std::size_t i = 0; i < of_head; ++i) {
            tiles.push_back(tiles[first_tile + i]);
            tiles.back().kv_head = head;
        }
}

// Items of all tiles; splits become items of their own where whole tiles are too few for `threads`. Either way gives
// the same bits. Returns the number of partial results.
std::int64_t list_items(Scratch& scratch, std::size_t floats_each, int threads) {
    const bool few = static_cast<std::int64_t>(scratch.tiles.size()) < std::int64_t{threads} * kRunsPerThread;
    std::int64_t partials = 0;
    scratch.items.clear();
    for (std::size_t i = 0; i < scratch.tiles.size(); ++i) {
        Tile& tile = scratch.tiles[i];
        const auto index = static_cast<std::int32_t>(i);
        const bool fits = (partials + tile.num_splits) * floats_each <= kMostPartials;
        if (threads == 1 || !few || tile.num_splits <= 1 || !fits) {
            scratch.items.push_back({index, -1});
            continue;
        }
        tile.partial = partials;
        partials += tile.num_splits;
        for (std::int32_t split = 0; split < tile.num_splits; ++split) scratch.items.push_back({index, split});
    }
    return partials;
}

void require_held(const Layer& layer, const Batch& batch, std::int64_t sequence, std::int64_t begin, std::int64_t end) {
    const std::int32_t* table = batch.table + sequence * batch.table_width;
    for (std::int64_t block = begin / layer.block_size; block * layer.block_size < end; ++block) {
        const bool listed = block < batch.table_width;
        if (listed && table[block] >= 0 && table[block] < layer.num_blocks) continue;
        throw std::out_of_range("block_table[" + std::to_string(sequence) + ", " + std::to_string(block) + "] is " +
                                (listed ? std::to_string(table[block]) : "missing") + ", but a query reads positions " +
                                std::to_string(begin) + " to " + std::to_string(end - 1) + " and the arena has " +
                                std::to_string(layer.num_blocks) + " blocks");
    }
}

// Has every tile choose its blocks. bits: memory that is kept.
Kept choose(const Level& level, const Step& step, std::size_t tiles, std::vector<std::uint64_t>& bits, float* workspaces,
            std::size_t own, int threads) {
    Kept kept = step.kept;
    const std::size_t needed = static_cast<std::size_t>(kept.rows + 2 * tiles) * kept.words;
    if (bits.size() < needed) bits.resize(needed);
    kept.bits = bits.data();
    Step choosing = step;
    choosing.kept = kept;
    parallel(tiles, threads, [&](std::size_t i, std::size_t worker) { level.choose(choosing, i, workspaces + own * worker); });
    return kept;
}

// The room that choices of a batch take, without memory.
Kept room_for_choices(const Layer& layer, const Batch& batch) {
    Kept kept;
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
        const std::int64_t end = batch.start[s] + batch.query_start[s + 1] - batch.query_start[s];
        kept.blocks = std::max(kept.blocks, (end + layer.block_size - 1) / layer.block_size);
    }
    kept.words = (kept.blocks + 63) / 64, kept.heads = layer.kv_heads, kept.rows = batch.tokens() * layer.kv_heads;
    return kept;
}

}  // namespace

void check(const Layer& layer, const Batch& batch) {
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
        const std::int64_t count = batch.query_start[s + 1] - batch.query_start[s], start = batch.start[s];
        if (count == 0) continue;
        const std::int64_t first = layer.reach.first(start), last_first = layer.reach.first(start + count - 1);
        const std::int64_t end = layer.reach.end(start + count - 1);
        require_held(layer, batch, s, first, end);
        if (layer.reach.sinks > 0 && last_first > 0) {
            require_held(layer, batch, s, 0, std::min(layer.reach.sinks, end));
        }
    }
    const std::int64_t slots = layer.num_blocks * layer.block_size;
    for (std::int64_t t = 0; t < batch.tokens(); ++t) {
        if (batch.slots[t] >= 0 && batch.slots[t] < slots) continue;
        throw std::out_of_range("slots[" + std::to_string(t) + "] is " + std::to_string(batch.slots[t]) +
                                ", but the arena has " + std::to_string(slots) + " slots");
    }
}

void attend(const Layer& layer, const Batch& batch, const Rows& q, const Rows& out, float* lse, Scratch& scratch,
            int num_threads, Isa isa, const Earlier* earlier) {
    const Level& level = level_for(layer, isa);
    scratch.tiles.clear();
    for (std::int64_t s = 0; s < batch.sequences(); ++s) cut(layer, batch, s, level.target_rows, scratch.tiles);
    if (scratch.tiles.empty()) return;

    const int threads = num_threads > 0 ? num_threads : static_cast<int>(max_threads());
    Step step{layer, batch, q, out, scratch.tiles.data(), nullptr, lse, earlier, nullptr, 0, level.band, {}};
    for (const Tile& tile : scratch.tiles) step.max_rows = std::max(step.max_rows, step.rows(tile));
    if (layer.select) step.kept = room_for_choices(layer, batch);
    const std::size_t choices = layer.select ? level.choice_floats(layer, step.max_rows, step.kept.blocks) : 0;
    const std::size_t each = step.partial_floats();
    const std::size_t own = std::max(level.workspace_floats(layer, step.max_rows, level.band), choices);
    const std::size_t partials = list_items(scratch, each, threads) * each, needed = own * threads + partials + 2 * kLineFloats;
    if (scratch.memory.size() < needed) scratch.memory.resize(needed);
    // whole cache lines: a row of a tile that lies in two of them costs twice
    auto address = reinterpret_cast<std::uintptr_t>(scratch.memory.data());
    float* const workspaces = scratch.memory.data() + (-address % kLineBytes) / sizeof(float);
    step.items = scratch.items.data(), step.partials = workspaces + own * threads;

    if (layer.select) step.kept = choose(level, step, scratch.tiles.size(), scratch.kept, workspaces, own, threads);
    // Runs start in their order: while all threads keep pace, each gets every `threads`-th.
    const std::size_t items = scratch.items.size(), runs = std::min<std::size_t>(items, std::size_t{kRunsPerThread} * threads);
    const auto begin = [&](std::size_t run) { return static_cast<std::int32_t>(items * run / runs); };
    parallel(runs, threads, [&](std::size_t run, std::size_t worker) {
        const std::size_t after = run + threads;
        level.attend(step, {begin(run), begin(run + 1), after < runs ? begin(after) : -1}, workspaces + own * worker);
    });
    if (partials == 0) return;
    parallel(scratch.tiles.size(), threads, [&](std::size_t i, std::size_t worker) {
        if (scratch.tiles[i].partial >= 0) level.merge(step, scratch.tiles[i], workspaces + own * worker);
    });
}

void run(const Layer& layer, const Batch& batch, const Inputs& inputs, const Rows& out, Scratch& scratch, int num_threads,
         Isa isa) {
    if (inputs.keys.data) store(layer, batch, inputs.keys, inputs.values, num_threads, inputs.rope);
    if (inputs.rope) rotate(inputs.queries, batch.tokens(), layer.num_heads, layer.k.dim, *inputs.rope, num_threads);
    attend(layer, batch, inputs.queries, out, nullptr, scratch, num_threads, isa);
}

}  // namespace kvtrove::attention
