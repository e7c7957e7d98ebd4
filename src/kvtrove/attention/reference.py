"""The reference backend: decode what a format stored, then plain attention. Every other backend is compared with it.

Numbers: keys, values and queries are widened to float32, which holds float16 and bfloat16 exactly; products, softmax
and sums are float32, and only the result is rounded to the query's dtype.

Memory beyond the cache, per layer: the keys and values of one tile in float32 (the live tokens of one sequence, or
`MAX_KEYS` tokens of several decodes) and `MAX_SCORES` scores, or those of one query per sequence if that is more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Rotation
from kvtrove.attention.tiles import Tile, make_tiles
from kvtrove.kv.retention import Retention

MAX_SCORES = 1 << 22
"""Scores computed at a time: 16 MiB in float32."""


@dataclass(frozen=True)
class ReferencePlan:
    """A step, and its tiles for each kind of layer met so far: the first layer of a group makes them for the others."""

    batch: AttentionBatch
    _tiles: dict[tuple[int, Retention, int], list[Tile]] = field(default_factory=dict)

    def tiles(self, layer: AttentionLayer) -> list[Tile]:
        kind = (layer.group, layer.retention, layer.block_size)
        if kind not in self._tiles:
            self._tiles[kind] = make_tiles(self.batch, *kind)
        return self._tiles[kind]


class ReferenceBackend:
    """An AttentionBackend of plain torch operations, for every device and every per-token format."""

    name = "reference"

    def __init__(self, max_scores: int = MAX_SCORES) -> None:
        self.max_scores = max_scores

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        reasons = []
        if layer.num_heads % layer.kv_heads:
            reasons.append(
                f"layer {layer.index}: {layer.num_heads} heads cannot share {layer.kv_heads} kv_heads evenly"
            )
        if layer.format.rope != "post":
            reasons.append(f"layer {layer.index}: format {layer.format.name} stores keys before rotation")
        if layer.format.whole_block:
            reasons.append(f"layer {layer.index}: format {layer.format.name} keeps open blocks as they were computed")
        return reasons

    def plan(self, batch: AttentionBatch) -> ReferencePlan:
        return ReferencePlan(batch)

    @torch.inference_mode()
    def run(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: ReferencePlan,
        rotate: Rotation | None = None,
    ) -> Tensor:
        """Stores k, v, attends with q [T, num_heads, k_dim] -> [T, num_heads, v_dim] of its dtype."""
        if rotate is not None:
            q, k = rotate(q), None if k is None else rotate(k)
        if k is not None and v is not None:
            layer.format.encode(k, v, layer.view, plan.batch.groups[layer.group].slots)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        for tile in plan.tiles(layer):
            keys, values = _gather(layer, tile)
            for queries, span in _chunks(tile, self.max_scores // layer.num_heads):
                rows = tile.rows.unflatten(0, (tile.num_sequences, -1))[:, queries]  # [B, c]
                mask = tile.mask(queries, span)
                out[rows] = _attend(q[rows], keys[:, :, span], values[:, :, span], mask, layer).to(q.dtype)
        return out


def _gather(layer: AttentionLayer, tile: Tile) -> tuple[Tensor, Tensor]:
    """Keys and values of a tile, float32 [B, kv_heads, L, k_dim and v_dim]. Values that no query sees become zero."""
    k, v = (_widen(x, tile.num_sequences) for x in layer.format.decode(layer.view, tile.block_ids, layer.v_dim))
    return k, v.masked_fill_(~tile.seen[:, None, :, None], 0.0)


def _widen(x: Tensor, sequences: int) -> Tensor:
    """[B * L, kv_heads, head_dim] -> float32 [B, kv_heads, L, head_dim]; reordered while it has fewer bytes."""
    return x.unflatten(0, (sequences, -1)).transpose(1, 2).contiguous().float()


def _chunks(tile: Tile, max_pairs: int) -> Iterator[tuple[slice, slice]]:
    """Queries of a tile in runs of at most `max_pairs` (query, key) pairs a head, each with the keys that it needs."""
    done = 0
    while done < tile.num_queries:
        size = max(1, max_pairs // (tile.num_sequences * tile.positions.shape[1]))
        stop = min(done + size, tile.num_queries)
        yield slice(done, stop), slice(int(tile.first[done:stop].min()), int(tile.last[done:stop].max()))
        done = stop


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layer: AttentionLayer) -> Tensor:
    """softmax(cap(q.k * scale) + mask) . v, in float32.

    q: [B, c, num_heads, k_dim]. k, v: [B, kv_heads, L, k_dim and v_dim]. mask: bool [B, c, L]. The result is
    [B, c, num_heads, v_dim].
    The `num_heads / kv_heads` query heads that share a key head are rows of one product.
    """
    shared = layer.num_heads // layer.kv_heads
    # [B, kv_heads, shared, c, head_dim] -> [B, kv_heads, shared * c, head_dim]
    grouped = q.float().unflatten(2, (layer.kv_heads, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (grouped @ k.transpose(-1, -2)).mul_(layer.scale)
    if layer.softcap is not None:
        scores = scores.div_(layer.softcap).tanh_().mul_(layer.softcap)
    scores = scores.unflatten(2, (shared, -1)).masked_fill_(~mask[:, None, None], float("-inf"))
    mixed = scores.softmax(-1).flatten(2, 3) @ v
    return mixed.unflatten(2, (shared, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
