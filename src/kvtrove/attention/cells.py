"""Attention where every head has a block table of its own (`kv.cells`): each head of a layer is a batch of its own.

    one layer   q [T, heads * shared, dim]  ->  of each head [T, shared, dim]    S sequences of one key head
                tables [S, blocks]          ->  of each head [S, cells]

So any backend serves it that serves one key head, and a head reads exactly what it has kept: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, GroupTables, Rotation
from kvtrove.attention.cpu import CpuTokens
from kvtrove.kernels.attention import PagedBatch, paged_batch
from kvtrove.kv.cells import head_tables


@dataclass(frozen=True)
class CellsPlan:
    """A step. Tables of all heads of all layers are made at once, and number `cell` is that of a head."""

    batch: AttentionBatch
    block_size: int
    cells: int
    _heads: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def _tables(self) -> Mapping[str, NDArray[Any]]:
        """tables: int32 [cells, S, width], slots: int64 [cells, T], start: int64 [cells, S]."""
        return _tables(self.batch, self.block_size, self.cells)

    def of(self, cell: int, backend: AttentionBackend) -> Any:
        """The plan of `backend` for a head."""
        if cell not in self._heads:
            device, found = self.batch.groups[0].slots.device, self._tables
            slots, table = (torch.from_numpy(found[name][cell]).to(device) for name in ("slots", "tables"))
            batch = AttentionBatch(self.batch.query_start, found["start"][cell].tolist(), (GroupTables(slots, table),))
            self._heads[cell] = backend.plan(batch)
        return self._heads[cell]

    @cached_property
    def batches(self) -> list[PagedBatch]:
        """Of every head, as the CPU kernels take them."""
        parts = (self._tables[name] for name in ("start", "tables", "slots"))
        return [paged_batch(self.batch.query_start, *part) for part in zip(*parts, strict=True)]


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
    return {"tables": tables, "slots": np.ascontiguousarray(rows * size + places % size), "start": start}


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
        one = self.one_head(layer)
        parts = zip(q.split(one.num_heads, 1), k.split(1, 1), v.split(1, 1), strict=True)
        return torch.cat(
            [
                self.inner.run(*part, one, plan.of(layer.cell + head, self.inner), rotate)
                for head, part in enumerate(parts)
            ],
            dim=1,
        )

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
