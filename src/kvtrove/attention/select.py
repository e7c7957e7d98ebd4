"""Which blocks the queries of a tile read, by the layer's selector (`kv.selection`), in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionLayer


def chosen(q: Tensor, rows: Tensor, blocks: Tensor, own: Tensor, layer: AttentionLayer) -> Tensor:
    """bool [B, kv_heads, c, N]: which blocks each query reads, of those before its own, and its own.

    q: [B, c, num_heads, k_dim]. rows: int64 [B, N] in the arena. blocks: int64 [B, N], their places in the sequences.
    own: int64 [B, c], the place of each query's. Products are float64, so that no batch or chunk can turn a choice.
    """
    select, size, shared = layer.format.select, layer.block_size, layer.num_heads // layer.kv_heads
    assert select is not None, "the caller looked"
    grouped = q.double().unflatten(2, (layer.kv_heads, shared)).permute(0, 2, 3, 1, 4)  # [B, kv_heads, shared, c, dim]
    promise = select.promise(grouped, layer.view, rows)
    older = (blocks[:, None] < own[..., None])[:, None]  # [B, 1, c, N]
    promise = promise.masked_fill(~older, float("-inf"))
    order = promise.sort(dim=-1, descending=True, stable=True).indices  # of equal ones, the first
    room = torch.tensor([[select.room(n, size) for n in row] for row in own.tolist()], device=q.device)
    best = torch.arange(order.shape[-1], device=q.device) < room[:, None, :, None]  # [B, 1, c, N]
    read = torch.zeros_like(older.expand_as(promise)).scatter_(-1, order, best.expand_as(order)) & older
    return read | (blocks[:, None] == own[..., None])[:, None]
