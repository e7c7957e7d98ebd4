"""Attention where every head has a block table of its own (`kv.cells`): each head of a layer is a batch of its own.

    one layer   q [T, heads * shared, dim]  ->  [heads * T, shared, dim]     S * heads sequences of one key head
                tables [S, blocks]          ->  [heads * S, cells]

So any backend serves it that serves one key head, and a head reads exactly what it has kept: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, GroupTables, Rotation
from kvtrove.attention.cpu import CpuTokens
from kvtrove.kv.cells import head_tables


@dataclass(frozen=True)
class CellsPlan:
    """A step. Tables of all heads are made at once; a layer takes its part.

    tables: int32 [cells, S, width], slots: int64 [cells, T], start: int64 [cells, S] of every head of every layer.
    """

    batch: AttentionBatch
    block_size: int
    cells: int
    _tables: dict[str, NDArray[Any]] = field(default_factory=dict)
    _layers: dict[int, Any] = field(default_factory=dict)

    def of(self, layer: AttentionLayer, backend: AttentionBackend) -> Any:
        """The plan of `backend` for the heads of a layer."""
        if layer.cell not in self._layers:
            if not self._tables:
                self._tables.update(_tables(self.batch, self.block_size, self.cells))
            mine = slice(layer.cell, layer.cell + layer.kv_heads)
            tables, slots, start = (self._tables[name][mine] for name in ("tables", "slots", "start"))
            rows, tokens = np.array(self.batch.query_start[:-1]), self.batch.query_start[-1]
            first = (np.arange(layer.kv_heads)[:, None] * tokens + rows).ravel()
            device = self.batch.groups[0].slots.device
            group = GroupTables(
                torch.from_numpy(slots.ravel()).to(device),
                torch.from_numpy(np.ascontiguousarray(tables.reshape(-1, tables.shape[-1]))).to(device),
            )
            batch = AttentionBatch([*first.tolist(), layer.kv_heads * tokens], start.ravel().tolist(), (group,))
            self._layers[layer.cell] = backend.plan(batch)
        return self._layers[layer.cell]


def _tables(batch: AttentionBatch, size: int, cells: int) -> Mapping[str, NDArray[Any]]:
    packed = [0 if said is None else rows for said, rows in zip(batch.counts, batch.packed, strict=True)]
    tables = head_tables(batch.groups[0].block_table.cpu().numpy(), batch.counts, packed, cells)
    counts = np.diff(batch.query_start)
    owner = np.repeat(np.arange(len(counts)), counts)
    start = np.tile(np.array(batch.start, dtype=np.int64), (cells, 1))
    for s, said in enumerate(batch.counts):
        if said is not None:
            start[:, s] += (said - packed[s]).astype(np.int64) * size
    places = start[:, owner] + np.arange(len(owner)) - np.array(batch.query_start[:-1])[owner]
    rows = tables[np.arange(cells)[:, None], owner, places // size].astype(np.int64)
    return {"tables": tables, "slots": rows * size + places % size, "start": start}


class CellsBackend:
    """An AttentionBackend for layers whose rows are cut into cells. inner: serves one key head at a time."""

    def __init__(self, inner: AttentionBackend) -> None:
        self.inner, self.name = inner, inner.name
        self._layers: dict[int, tuple[AttentionLayer, AttentionLayer]] = {}
        self._cut = (0, 0)

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        if layer.sink_logits is not None:
            return [f"layer {layer.index}: its heads have sink logits, with which they do not keep unequal shares"]
        self._cut = layer.block_size, layer.cells
        return self.inner.reasons_against(self.one_head(layer), device)

    def plan(self, batch: AttentionBatch) -> CellsPlan:
        return CellsPlan(batch, *self._cut)

    def run(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: CellsPlan,
        rotate: Rotation | None = None,
    ) -> Tensor:
        """Stores k, v, attends with q [T, num_heads, k_dim] -> [T, num_heads, v_dim] of its dtype."""
        assert k is not None, "layers that read another's storage are refused"
        assert v is not None
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        one, inner = self.one_head(layer), plan.of(layer, self.inner)
        queries = q.unflatten(1, (layer.kv_heads, -1)).transpose(0, 1).flatten(0, 1)
        keys, values = (x.transpose(0, 1).flatten(0, 1)[:, None].contiguous() for x in (k, v))
        out = self.inner.run(queries.contiguous(), keys, values, one, inner)
        return out.unflatten(0, (layer.kv_heads, -1)).transpose(0, 1).flatten(1, 2)

    def one_head(self, layer: AttentionLayer) -> AttentionLayer:
        """The layer as `inner` knows it."""
        known = self._layers.get(layer.index)
        if known is None or known[0] is not layer:
            one = replace(layer, num_heads=layer.num_heads // layer.kv_heads, kv_heads=1, group=0)
            known = self._layers[layer.index] = layer, one
        return known[1]


@dataclass(frozen=True)
class CellTokens:
    """Single tokens of a layer whose rows are cut into cells, as `CpuTokens` has others. one: that of a single cell."""

    one: CpuTokens
    layer: AttentionLayer

    def keys(self, slots: Tensor) -> Tensor:
        """Keys in slots int64 [n] of whole rows as numbers, float32 [n, kv_heads, k_dim]."""
        return self._by_head(self.one.keys(self._all(slots)))

    def values(self, slots: Tensor) -> Tensor:
        """Values, float32 [n, kv_heads, v_dim]."""
        return self._by_head(self.one.values(self._all(slots)))

    def slots(self, head: int, slots: Tensor) -> Tensor:
        """Where the tokens of a head lie that have these slots in whole rows: slots in cells, int64 [n]."""
        size = self.layer.block_size
        return (slots // size * self.layer.cells + self.layer.cell + head) * size + slots % size

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Tokens as they are stored, of any heads of any layers: from slots in cells int64 [n] to slots in cells."""
        self.one.move(sources[None], targets)

    def _all(self, slots: Tensor) -> Tensor:
        return torch.cat([self.slots(head, slots) for head in range(self.layer.kv_heads)])

    def _by_head(self, found: Tensor) -> Tensor:
        heads, dim = self.layer.kv_heads, found.shape[-1]
        return found.view(heads, len(found) // heads, dim).transpose(0, 1)
