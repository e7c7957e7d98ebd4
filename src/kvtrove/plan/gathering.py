"""Most memory that a compaction takes beside the cache (`runner.gather`, `runner.pack`), of one layer at a time.

keys, and what they are scored by   float32, as they are decoded; values where the compactor reads them, and both side
                                    by side where a gate does
window                              attention of the last queries: scores, weights, and what a softmax needs
unequal heads                       scores of all layers, and all that stays, before any is written
"""

from __future__ import annotations

from kvtrove.kv.spec import KVCacheSpec

FLOAT32, INT64 = 4, 8
COPIES = 3
"""Of keys, queries and weights that are alive together: as they were read, normalised or turned, and a product."""


def gathering_bytes(cache: KVCacheSpec, num_heads: int, context: int) -> int:
    """For a sequence of `context` tokens, of a model with `num_heads` query heads; 0 where no tokens leave."""
    compactor = cache.compactor
    if compactor is None:
        return 0
    held = min(context, compactor.most(context))
    most = 0
    for layer in cache.layers:
        values, scoring = 0, layer.heads
        if compactor.reads_values:
            values = layer.heads * layer.v_dim * FLOAT32
            scoring = num_heads if compactor.window else layer.heads  # Expected Attention has keys of every head
            values += 0 if compactor.window else layer.heads * (layer.k_dim + layer.v_dim) * FLOAT32  # of a gate: both
        keys = COPIES * scoring * layer.k_dim * FLOAT32
        window = COPIES * num_heads * compactor.window * FLOAT32
        order = layer.heads * 2 * (FLOAT32 + INT64)
        most = max(most, held * (keys + values + window + order))
    if not compactor.unequal:
        return most
    scores = 2 * cache.cells * held * (FLOAT32 + INT64)
    kept = compactor.kept(held) * cache.block_bytes // cache.block_size
    return most + scores + 2 * kept
