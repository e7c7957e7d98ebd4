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

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Reach, Rotation, first_rows
from kvtrove.attention.merge import merge, softmax_mix
from kvtrove.attention.own_block import OwnBlocks
from kvtrove.attention.plan import StepPlan
from kvtrove.attention.select import chosen
from kvtrove.attention.tiles import Tile, make_tiles
from kvtrove.kv.retention import Retention

MAX_SCORES = 1 << 22
"""Scores computed at a time: 16 MiB in float32."""
WINDOW_SCORES = 1 << 18
"""The same where all of them are wanted: so many stay in a processor's cache from step to step."""


@dataclass(frozen=True)
class ReferencePlan(StepPlan):
    """Tiles for each kind of layer met so far: the first layer of a group makes them for the others."""

    _tiles: dict[tuple[int, Retention, int, Reach], list[Tile]] = field(default_factory=dict)
    _own: dict[int, OwnBlocks] = field(default_factory=dict)

    def tiles(self, layer: AttentionLayer) -> list[Tile]:
        kind = (layer.group, layer.retention, layer.block_size, layer.reads)
        if kind not in self._tiles:
            self._tiles[kind] = make_tiles(self.batch, *kind)
        return self._tiles[kind]

    def own_blocks(self, layer: AttentionLayer, device: torch.device) -> OwnBlocks:
        if layer.block_size not in self._own:
            self._own[layer.block_size] = OwnBlocks.of(self.batch, layer.block_size, device)
        return self._own[layer.block_size]


class ReferenceBackend:
    """An AttentionBackend of plain torch operations, for every device and every format."""

    name = "reference"

    def __init__(self, max_scores: int = MAX_SCORES) -> None:
        self.max_scores = max_scores

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        reasons = []
        if layer.num_heads % layer.kv_heads:
            reasons.append(
                f"layer {layer.index}: {layer.num_heads} heads cannot share {layer.kv_heads} kv_heads evenly"
            )
        return reasons

    def plan(self, batch: AttentionBatch) -> ReferencePlan:
        return ReferencePlan(batch)

    @torch.inference_mode()
    def store(
        self, k: Tensor, v: Tensor, layer: AttentionLayer, plan: ReferencePlan, rotate: Rotation | None = None
    ) -> None:
        k = k if rotate is None else rotate(k)
        if layer.first is not None and layer.format.rope == "post":
            _store_first(k, v, layer.first, plan.batch)
        layer.format.encode(k, v, layer.view, plan.batch.groups[layer.group].slots)
        self._summarise(layer, plan)

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
        before = layer.format.rope == "pre"
        if k is not None:
            plan.leave_rotation(layer, rotate)
        if rotate is not None:
            q, k = rotate(q), k if k is None or before else rotate(k)
        if layer.first is not None and k is not None and v is not None and (before or layer.format.whole_block):
            _store_first(rotate(k) if before and rotate is not None else k, v, layer.first, plan.batch)
        if layer.format.whole_block:
            own = plan.own_blocks(layer, q.device)
            own_k, own_v = plan.shared.of(layer, k, v, own)
            own_k = _turned(own_k.flatten(0, 1), own.positions, layer, plan).view(own_k.shape)
            return merge([*self._parts(q, layer, plan), _own(q, own_k, own_v, own, layer)]).to(q.dtype)
        if k is not None and v is not None:
            self.store(k, v, layer, plan)
        if layer.first is not None:
            return merge([*self._parts(q, layer, plan)]).to(q.dtype)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        for rows, keys, values, mask in self._pieces(layer, plan, q):
            out[rows] = _attend(q[rows], keys, values, mask, layer).to(q.dtype)
        return out

    def _summarise(self, layer: AttentionLayer, plan: ReferencePlan) -> None:
        """What queries choose by, of every block that this step has filled."""
        completed = plan.batch.completed
        if layer.format.select and completed:
            table = plan.batch.groups[layer.group].block_table
            layer.format.summarise(layer.view, table[tuple(torch.tensor(completed, device=table.device).T)].long())

    def _pieces(
        self, layer: AttentionLayer, plan: ReferencePlan, q: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Rows of queries [B, c], the keys and values that they need, [B, kv_heads, L, dim], and which read which.

        That is bool [B, c, L], or where queries q [T, num_heads, k_dim] choose blocks, [B, kv_heads, c, L].
        """
        for tile in plan.tiles(layer):
            keys, values = _gather(layer, tile, plan)
            for queries, span in _chunks(tile, self.max_scores // layer.num_heads):
                rows = tile.rows.unflatten(0, (tile.num_sequences, -1))[:, queries]
                mask = tile.mask(queries, span)
                if q is not None and layer.format.select:
                    mask = mask[:, None] & _selected(q[rows], tile, queries, layer)[..., span]
                yield rows, keys[:, :, span], values[:, :, span], mask

    def _parts(self, q: Tensor, layer: AttentionLayer, plan: ReferencePlan) -> Iterator[tuple[Tensor, Tensor]]:
        """Attention over each of the layer's storages: float64 [T, num_heads, v_dim] and lse [T, num_heads].

        In float64, so that rounding to the query's dtype hides in which tiles and batches the sums were made.
        """
        for part in layer.parts:
            out = q.new_zeros((*q.shape[:-1], layer.v_dim), dtype=torch.float64)
            lse = q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float64)
            for rows, keys, values, mask in self._pieces(part, plan):
                out[rows], lse[rows] = _attend_part(
                    q[rows], keys.double(), values.double(), mask, part, part is layer.first
                )
            yield out, lse


def window_probabilities(q: Tensor, k: Tensor, layer: AttentionLayer) -> Tensor:
    """Attention of the last w tokens of a sequence, float32 [kv_heads, shared, w, n], for compactors that score by it.

    q: [w, num_heads, k_dim]. k: [n, kv_heads, k_dim]. Both rotated; query i is that of token n - w + i.
    """
    (w, n), shared = (q.shape[0], k.shape[0]), layer.num_heads // layer.kv_heads
    keys = k.float().transpose(0, 1).contiguous()[None]
    mask = torch.ones(w, n, dtype=torch.bool, device=k.device).tril_(n - w)
    found = keys.new_empty((layer.kv_heads, shared, w, n))
    step = max(1, WINDOW_SCORES // (layer.num_heads * n))
    for start in range(0, w, step):
        rows = slice(start, min(start + step, w))
        scores = _scores(q[None, rows], keys, mask[None, rows], layer)[0]
        weights = scores.softmax(-1)
        if layer.sink_logits is not None:
            total = scores.logsumexp(-1)
            all_of = torch.logaddexp(total, _sinks(layer.sink_logits, scores[None], layer))
            weights *= (total - all_of).exp()[..., None]
        found[:, :, rows] = weights.unflatten(1, (shared, -1))
    return found


def _selected(q: Tensor, tile: Tile, queries: slice, layer: AttentionLayer) -> Tensor:
    """bool [B, kv_heads, c, L]: keys of the blocks that queries q [B, c, num_heads, k_dim] of the tile choose."""
    size = layer.block_size
    own = tile.spans[1][:, queries].amax(-1) - 1  # the last key that a query reads is its own
    blocks = tile.positions[:, ::size] // size
    read = chosen(q, tile.block_ids.view(blocks.shape), blocks, own // size, layer)
    return read.repeat_interleave(size, -1)


def _gather(layer: AttentionLayer, tile: Tile, plan: ReferencePlan) -> tuple[Tensor, Tensor]:
    """Keys and values of a tile, float32 [B, kv_heads, L, k_dim and v_dim]. Values that no query sees become zero."""
    k, v = layer.format.decode(layer.view, tile.block_ids, layer.v_dim)
    k, v = (_widen(x, tile.num_sequences) for x in (_turned(k, tile.positions.flatten(), layer, plan), v))
    return k, v.masked_fill_(~tile.seen[:, None, :, None], 0.0)


def _turned(k: Tensor, positions: Tensor, layer: AttentionLayer, plan: ReferencePlan) -> Tensor:
    """k [T, kv_heads, k_dim], rotated for its positions int64 [T] where it is stored before its rotation."""
    rotate = plan.unturned.get(layer.storage) if layer.format.rope == "pre" else None
    return k if rotate is None else rotate.at(positions)(k)


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


def _store_first(k: Tensor, v: Tensor, first: AttentionLayer, batch: AttentionBatch) -> None:
    """Of k, v [T, kv_heads, dim], as they are read, those among the first tokens of their sequences."""
    rows = torch.tensor(first_rows(batch, first.reach), dtype=torch.int64, device=k.device)
    first.format.encode(k[rows], v[rows], first.view, batch.groups[first.group].slots[rows])


def _own(q: Tensor, k: Tensor, v: Tensor, own: OwnBlocks, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
    """Attention of queries [T, num_heads, k_dim] over their own blocks k, v [n, block_size, kv_heads, dim]."""
    blocks, size = own.held.shape
    queries = q.new_zeros((blocks * size, *q.shape[1:]), dtype=torch.float64)
    queries[own.place] = q.double()
    keys, values = (x.double().transpose(1, 2) for x in (k, v))
    queries = queries.unflatten(0, (blocks, size))
    out, lse = _attend_part(queries, keys, values, own.mask(layer.retention), layer, has_sink=True)
    return out.flatten(0, 1)[own.place], lse.flatten(0, 1)[own.place]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layer: AttentionLayer) -> Tensor:
    """softmax(cap(q.k * scale) + mask) . v, in float32.

    q: [B, c, num_heads, k_dim]. k, v: [B, kv_heads, L, k_dim and v_dim]. mask: bool [B, c, L]. The result is
    [B, c, num_heads, v_dim].
    """
    scores = _scores(q, k, mask, layer)
    if layer.sink_logits is None:
        return _by_query(scores.softmax(-1) @ v, layer)
    return _by_query(softmax_mix(scores, v, _sinks(layer.sink_logits, scores, layer))[0], layer)


def _attend_part(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layer: AttentionLayer, has_sink: bool = False
) -> tuple[Tensor, Tensor]:
    """As `_attend`, over some of the keys, and the logarithm of the sum of exponentials [B, c, num_heads].

    has_sink: this is the one part of a query's keys that the layer's sink logits stand beside.
    """
    scores = _scores(q, k, mask, layer)
    sinks = layer.sink_logits if has_sink else None
    mixed, lse = softmax_mix(scores, v, None if sinks is None else _sinks(sinks, scores, layer))
    return _by_query(mixed, layer), _by_query(lse[..., None], layer)[..., 0]


def _sinks(logits: Tensor, scores: Tensor, layer: AttentionLayer) -> Tensor:
    """[kv_heads, shared * c] for scores [B, kv_heads, shared * c, L]: the same for all queries of a head."""
    queries = scores.shape[2] * layer.kv_heads // layer.num_heads
    return logits.to(scores).repeat_interleave(queries).view(layer.kv_heads, -1)


def _scores(q: Tensor, k: Tensor, mask: Tensor, layer: AttentionLayer) -> Tensor:
    """[B, kv_heads, shared * c, L] in the dtype of k: the `num_heads / kv_heads` query heads that share a key head are
    rows of one product."""
    shared = layer.num_heads // layer.kv_heads
    # [B, kv_heads, shared, c, k_dim] -> [B, kv_heads, shared * c, k_dim]
    grouped = q.to(k.dtype).unflatten(2, (layer.kv_heads, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (grouped @ k.transpose(-1, -2)).mul_(layer.scale)
    if layer.softcap is not None:
        scores = scores.div_(layer.softcap).tanh_().mul_(layer.softcap)
    mask = mask[:, None] if mask.dim() == 3 else mask  # the same for all heads
    return scores.unflatten(2, (shared, -1)).masked_fill_(~mask[:, :, None], float("-inf")).flatten(2, 3)


def _by_query(x: Tensor, layer: AttentionLayer) -> Tensor:
    """[B, kv_heads, shared * c, dim] -> [B, c, num_heads, dim]."""
    return x.unflatten(2, (layer.num_heads // layer.kv_heads, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
