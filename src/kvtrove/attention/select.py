"""Reading few blocks of many: which ones a query chooses, by bounds of their keys (Quest, arXiv 2406.10774).

    block       | 0 min, max | 1 min, max | 2 min, max | 3: the query's own |
    promise     |    3.1     |    0.2     |    7.4     |      always        |      read: 2, 3, then 0

The promise of a block is the largest product that a key within its bounds can have with the query. The choice is one
for all query heads of a key head, by the best promise among them, and depends on the query, its position and the
blocks before it alone: prompts choose as answers do, so that neither chunks, hits nor preemption show.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionLayer


def chosen(q: Tensor, rows: Tensor, blocks: Tensor, own: Tensor, layer: AttentionLayer) -> Tensor:
    """bool [B, kv_heads, c, N]: which blocks each query reads, of those before its own, and its own.

    q: [B, c, num_heads, k_dim]. rows: int64 [B, N] in the arena. blocks: int64 [B, N], their places in the sequences.
    own: int64 [B, c], the place of each query's. Products are float64, so that no batch or chunk can turn a choice.
    """
    low, high = (layer.view[name][rows].double().movedim(2, 1) for name in ("k_min", "k_max"))  # [B, kv_heads, N, dim]
    grouped = q.double().unflatten(2, (layer.kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, kv_heads, shared, c, dim]
    up, down = grouped.clamp(min=0).flatten(2, 3), grouped.clamp(max=0).flatten(2, 3)
    promise = (up @ high.mT + down @ low.mT).unflatten(2, (-1, q.shape[1])).amax(2)  # [B, kv_heads, c, N]
    older = (blocks[:, None] < own[..., None])[:, None]  # [B, 1, c, N]
    promise = promise.masked_fill(~older, float("-inf"))
    room = min(layer.format.select // layer.block_size - 1, promise.shape[-1])
    best = promise.sort(dim=-1, descending=True, stable=True).indices[..., :room]
    read = torch.zeros_like(promise, dtype=torch.bool).scatter_(-1, best, True) & older
    return read | (blocks[:, None] == own[..., None])[:, None]
