"""A step as the CPU kernels take it: tables of blocks for each group of layers, made by the first layer that asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Reach, first_rows
from kvtrove.attention.expand import Expansion, expansions
from kvtrove.attention.own_block import OwnBlocks
from kvtrove.attention.plan import StepPlan
from kvtrove.kernels.attention import PagedBatch, PagedLayer, PagedShape, PagedSide, paged_batch, paged_layer
from kvtrove.kv.retention import Retention


@dataclass(frozen=True)
class CpuPlan(StepPlan):
    """Tables as the kernels take them, for each group of layers met so far."""

    _groups: dict[int, PagedBatch] = field(default_factory=dict)
    _first: dict[tuple[int, Reach], FirstTokens] = field(default_factory=dict)
    _open: dict[int, OpenBlocks] = field(default_factory=dict)
    _expansions: dict[tuple[int, Retention, int, Reach], list[Expansion]] = field(default_factory=dict)

    def group(self, index: int) -> PagedBatch:
        if index not in self._groups:
            tables = self.batch.groups[index]
            self._groups[index] = paged_batch(
                self.batch.query_start,
                self.batch.start,
                tables.block_table.contiguous().numpy(),
                tables.slots.contiguous().numpy(),
            )
        return self._groups[index]

    @property
    def batches(self) -> list[PagedBatch]:
        """Of every group."""
        return [self.group(index) for index in range(len(self.batch.groups))]

    def first(self, layer: AttentionLayer) -> FirstTokens:
        kind = layer.group, layer.reach
        if kind not in self._first:
            self._first[kind] = FirstTokens.of(self.batch, *kind)
        return self._first[kind]

    def batch_of(self, layer: AttentionLayer) -> PagedBatch:
        """Where queries of the layer read."""
        return self.group(layer.group) if layer.reach.limit is None else self.first(layer).reads

    def expansions(self, layer: AttentionLayer) -> list[Expansion]:
        kind = layer.group, layer.retention, layer.block_size, layer.reach
        if kind not in self._expansions:
            self._expansions[kind] = [*expansions(self.batch, *kind)]
        return self._expansions[kind]

    def open_blocks(self, block_size: int) -> OpenBlocks:
        if block_size not in self._open:
            self._open[block_size] = OpenBlocks.of(self.batch, block_size)
        return self._open[block_size]


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """A storage of first tokens in a step. rows: int64, those of the new tokens that it stores; writes: their batch.

    reads: of all queries; they store nothing.
    """

    rows: Tensor
    writes: PagedBatch
    reads: PagedBatch

    @classmethod
    def of(cls, batch: AttentionBatch, group: int, reach: Reach) -> FirstTokens:
        table, slots = (x.contiguous().numpy() for x in (batch.groups[group].block_table, batch.groups[group].slots))
        rows = np.array(first_rows(batch, reach), np.int64)
        query_start = np.searchsorted(rows, batch.query_start).tolist()
        writes = paged_batch(query_start, batch.start, table, slots[rows])
        return cls(
            torch.from_numpy(rows), writes, paged_batch(batch.query_start, batch.start, table, np.maximum(slots, 0))
        )


@dataclass(frozen=True, eq=False)
class OpenBlocks:
    """The blocks that new tokens lie in, as they were computed, as a cache that kernels read: one for all layers alike.

    batch: each sequence's table names its own blocks alone.
    """

    own: OwnBlocks
    batch: PagedBatch
    _layers: dict[tuple[PagedShape, torch.dtype, int, int], tuple[PagedLayer, Tensor, Tensor]] = field(
        default_factory=dict
    )

    @classmethod
    def of(cls, batch: AttentionBatch, block_size: int) -> OpenBlocks:
        own = OwnBlocks.of(batch, block_size, torch.device("cpu"))
        counts = [stop - start for start, stop in pairwise(batch.query_start)]
        spans = [
            range(start // block_size, -(-(start + count) // block_size)) if count else range(0)
            for start, count in zip(batch.start, counts, strict=True)
        ]
        table = np.full((len(spans), max(span.stop for span in spans)), -1, np.int32)
        at = 0
        for row, span in zip(table, spans, strict=True):
            row[span.start : span.stop] = np.arange(at, at + len(span))
            at += len(span)
        return cls(own, paged_batch(batch.query_start, batch.start, table, own.place.numpy()))

    def layer(self, k: Tensor, v: Tensor, shape: PagedShape) -> PagedLayer:
        """k, v: [n, block_size, kv_heads, dim] of the blocks; read until the next call."""
        key = shape, k.dtype, k.shape[3], v.shape[3]
        known = self._layers.get(key)
        if known is None:
            keys, values = (x.new_empty((len(x), shape.kv_heads, shape.block_size, x.shape[3])) for x in (k, v))
            dtype = str(k.dtype).removeprefix("torch.")
            sides = (PagedSide(dtype, False, x.shape[3], x) for x in (keys, values))
            known = self._layers[key] = paged_layer(next(sides), next(sides), shape), keys, values
        layer, keys, values = known
        keys.copy_(k.transpose(1, 2)), values.copy_(v.transpose(1, 2))
        return layer
