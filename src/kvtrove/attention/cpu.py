"""The backend of CPUs: fused kernels for dense, scaled and coded caches. Answers are those of the reference.

What a step costs in Python does not grow with its context: one handle a group of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Reach, Rotation, first_rows
from kvtrove.attention.own_block import OwnBlocks, Shared
from kvtrove.kernels.attention import (
    HEAD_DIM_STEP,
    MAX_HEAD_DIM,
    AttentionKernel,
    PagedBatch,
    PagedLayer,
    PagedSelection,
    PagedShape,
    PagedSide,
    paged_batch,
    paged_layer,
)
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.formats.fp8 import Fp8
from kvtrove.kv.formats.int4 import GROUP, Int4, Int4Rotated
from kvtrove.kv.formats.int8 import Int8
from kvtrove.kv.formats.kivi import Kivi
from kvtrove.kv.formats.layout import TILE
from kvtrove.kv.formats.oscar import Oscar
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.selection.double_sparsity import LABELS, DoubleSparsity
from kvtrove.kv.selection.quest import BOUNDS, Quest
from kvtrove.kv.spec import Codec, KVFormat, Planes, side_view

DENSE = ("float32", "float16", "bfloat16")
TILED_ALONE = (Fp8, Int4, Int4Rotated, Kivi, Oscar)
KNOWN = (Dense, Int8, *TILED_ALONE)


@dataclass(frozen=True)
class CpuPlan:
    """A step, and its tables as the kernels take them, for each group of layers met so far."""

    batch: AttentionBatch
    shared: Shared = field(default_factory=Shared)
    _groups: dict[int, PagedBatch] = field(default_factory=dict)
    _first: dict[tuple[int, Reach], FirstTokens] = field(default_factory=dict)
    _open: dict[int, OpenBlocks] = field(default_factory=dict)

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

    def first(self, layer: AttentionLayer) -> FirstTokens:
        kind = layer.group, layer.reach
        if kind not in self._first:
            self._first[kind] = FirstTokens.of(self.batch, *kind)
        return self._first[kind]

    def batch_of(self, layer: AttentionLayer) -> PagedBatch:
        """Where queries of the layer read."""
        return self.group(layer.group) if layer.reach.limit is None else self.first(layer).reads

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


class CpuBackend:
    """An AttentionBackend of the C++ kernels. Results do not depend on batch, prefill chunks or number of threads.

    isa: instruction set (`kvtrove.kernels.isa`). num_threads: 0 is `kvtrove.kernels.threads()`.
    Raises ImportError when the extension is not built, ValueError when the processor lacks `isa`.
    """

    name = "cpu"

    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None:
        self.kernel = AttentionKernel(isa, num_threads)
        self.isa = kernels.isa(isa)
        self._layers: dict[tuple[int, bool], tuple[AttentionLayer, PagedLayer]] = {}

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        where, reasons = f"layer {layer.index}", []
        if not device.startswith("cpu"):
            reasons.append(f"{where}: its cache is on {device}")
        if layer.num_heads % layer.kv_heads:
            reasons.append(f"{where}: {layer.num_heads} heads cannot share {layer.kv_heads} kv_heads evenly")
        parts = [((part.format.k, layer.k_dim), (_of_values(part.format), layer.v_dim)) for part in layer.parts]
        sides = [side for part in parts for side in part]
        against = [reason for codec, dim in sides for reason in _reasons_against(codec, dim, layer.block_size)]
        reasons.extend(f"{where}: {reason}" for reason in dict.fromkeys(against))
        if layer.format.select:
            reasons.extend(f"{where}: {reason}" for reason in _reasons_against_selection(layer))
        if _reach(layer.retention) is None:
            reasons.append(f"{where}: retention {type(layer.retention).__name__} is not sinks and a window")
        elif layer.format.whole_block and not _reads_own_block(layer.retention, layer.block_size):
            reasons.append(f"{where}: {layer.retention.id} cuts through a token's own block of {layer.block_size}")
        if layer.first is not None and (_reach(layer.retention) or {}).get("sinks", 0) > layer.reach.begin:
            reasons.append(f"{where}: first={layer.reach.begin} has fewer tokens than {layer.retention.id}")
        return reasons

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        return CpuPlan(batch)

    def store(self, k: Tensor, v: Tensor, layer: AttentionLayer, plan: CpuPlan, rotate: Rotation | None = None) -> None:
        if layer.first is not None:
            self._store_first(k if rotate is None else rotate(k), v, layer.first, plan)
        angles = None if rotate is None else (rotate.cos, rotate.sin)
        self.kernel.store(self.paged(layer), plan.group(layer.group), _rows(k), _rows(v), angles)

    def run(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: CpuPlan,
        rotate: Rotation | None = None,
    ) -> Tensor:
        """Stores k, v, attends with q [T, num_heads, k_dim] -> [T, num_heads, v_dim] of its dtype.

        k is rotated on its way into the cache, q in place.
        """
        if layer.format.whole_block or layer.first is not None:
            return self._run_parts(q, k, v, layer, plan, rotate)
        paged, batch = self.paged(layer), plan.group(layer.group)
        angles = None if rotate is None else (rotate.cos, rotate.sin)
        q = _rows(q)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        k, v = (None, None) if k is None or v is None else (_rows(k), _rows(v))
        self.kernel.run(paged, batch, q, k, v, out, angles)
        return out

    def _run_parts(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: CpuPlan,
        rotate: Rotation | None,
    ) -> Tensor:
        """The layer's storages in turn, then the own block as it was computed, each merged into the next."""
        if rotate is not None:
            q, k = rotate(q), None if k is None else rotate(k)
        q = _rows(q)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        if not layer.format.whole_block:
            if k is not None and v is not None:
                self.store(k, v, layer, plan)
            *parts, last = layer.parts
            earlier = self._attend_parts(q, parts, plan)
            self.kernel.attend(self.paged(last), plan.batch_of(last), q, out, earlier=earlier)
            return out
        if layer.first is not None and k is not None and v is not None:
            self._store_first(k, v, layer.first, plan)
        open_blocks = plan.open_blocks(layer.block_size)
        own_k, own_v = plan.shared.of(layer, k, v, open_blocks.own)
        earlier = self._attend_parts(q, layer.parts, plan)
        logits = layer.sink_logits
        shape = replace(
            _shape_of(layer), sinks=0, window=0, chunk=layer.block_size, sealed=0, begin=0, sink_logits=logits
        )
        self.kernel.attend(open_blocks.layer(own_k, own_v, shape), open_blocks.batch, q, out, earlier=earlier)
        return out

    def _store_first(self, k: Tensor, v: Tensor, layer: AttentionLayer, plan: CpuPlan) -> None:
        first = plan.first(layer)
        self.kernel.store(self.paged(layer), first.writes, k[first.rows], v[first.rows])

    def _attend_parts(self, q: Tensor, parts: Sequence[AttentionLayer], plan: CpuPlan) -> tuple[Tensor, Tensor] | None:
        """Attention over some storages of a layer, float32, and the logarithm of the sum of exponentials."""
        earlier = None
        for part in parts:
            out = q.new_empty((*q.shape[:-1], part.v_dim), dtype=torch.float32)
            lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
            of_keys, of_values = part.format.k, part.format.v
            queries = of_keys.turn(q).float() if isinstance(of_keys, Oscar) else q
            self.kernel.attend(self.paged(part), plan.batch_of(part), queries, out, lse, earlier)
            if isinstance(of_values, Oscar):
                assert earlier is None, "what is not turned would be turned back"
                out = of_values.turn_back(out).float()
            earlier = out, lse
        return earlier

    def paged(self, layer: AttentionLayer) -> PagedLayer:
        """The layer as kernels know it. ValueError when they do not serve it."""
        key = layer.index, layer.reach.limit is None
        known = self._layers.get(key)
        if known is None or known[0] is not layer:
            if reasons := self.reasons_against(layer, "cpu"):
                raise ValueError("; ".join(reasons))
            sides = (layer.format.k, layer.k_dim), (_of_values(layer.format), layer.v_dim)
            k, v = (paged_side(codec, dim, side_view(layer.view, codec.side)) for codec, dim in sides if codec)
            if layer.format.v is None:
                v = replace(v, tiled=False, row=layer.k_dim, in_tiles=k.tiled)
            known = self._layers[key] = layer, paged_layer(k, v, _shape_of(layer), paged_selection(layer))
        return known[1]


def _shape_of(layer: AttentionLayer) -> PagedShape:
    """Sinks that lie before the layer's begin are read where first tokens are."""
    is_last, reach = not layer.format.whole_block and layer.first is None, _reach(layer.retention) or {}
    return PagedShape(
        num_heads=layer.num_heads,
        kv_heads=layer.kv_heads,
        block_size=layer.block_size,
        scale=layer.scale,
        softcap=layer.softcap or 0.0,
        sink_logits=layer.sink_logits if is_last else None,
        sealed=layer.block_size if layer.reads.older else 0,
        begin=layer.reach.begin,
        limit=layer.reach.limit or 0,
        **(reach | {"sinks": 0} if layer.reach.begin else reach),
    )


def _of_values(stored: KVFormat) -> Codec | None:
    """What values are read from: the codec of keys where they are a part of them, as they were computed."""
    return stored.k if stored.v is None and isinstance(stored.k, Dense) else stored.v


@dataclass(frozen=True)
class CpuTokens:
    """Single tokens of a layer in the cache, by the kernels. Formats that encode token by token."""

    backend: CpuBackend
    layer: AttentionLayer

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values in slots int64 [n] as numbers, float32 [n, kv_heads, dim]."""
        paged, shape = self.backend.paged(self.layer), (self.layer.kv_heads, len(slots))
        sides = (True, self.layer.k_dim), (False, self.layer.v_dim)
        read = (self.backend.kernel.read(paged, keys, slots, torch.empty(*shape, dim)) for keys, dim in sides)
        return next(read).transpose(0, 1), next(read).transpose(0, 1)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Tokens of each kv head as they are stored, from slots int64 [kv_heads, n] to slots int64 [n]."""
        self.backend.kernel.move(self.backend.paged(self.layer), sources, targets)


def paged_side(codec: Codec, dim: int, planes: Planes) -> PagedSide:
    """What kernels are told of a side that they read."""
    data, scale, zero = planes["data"], planes.get("scale"), planes.get("zero")
    tiled = data.dim() > 4
    match codec:
        case Fp8():
            return PagedSide("float8_e4m3fn", tiled, dim, data.view(torch.uint8), scale)
        case Int4():
            return PagedSide("int4", tiled, dim, data, scale, zero, group=GROUP)
        case Int4Rotated():
            return PagedSide("int4", tiled, dim, data, scale, zero, turned=True)
        case Kivi():
            return PagedSide(f"int{codec.bits}", tiled, dim, data, scale, zero, channels=codec.side == "k")
        case Oscar():
            return PagedSide("int2", tiled, dim, data, scale, zero)
    return PagedSide(str(data.dtype).removeprefix("torch."), tiled, dim, data, scale)


def paged_selection(layer: AttentionLayer) -> PagedSelection | None:
    """What kernels are told of how a layer's queries choose blocks; None where they read all."""
    match layer.format.select:
        case Quest(tokens):
            return PagedSelection(tokens // layer.block_size - 1, bounds=layer.view[BOUNDS])
        case DoubleSparsity() as select:
            labels = layer.view[LABELS]
            channels = select.channels(labels).int().contiguous()
            return PagedSelection(select.least(layer.block_size), select.part, labels=labels, channels=channels)
    return None


def _reasons_against_selection(layer: AttentionLayer) -> list[str]:
    select, reasons = layer.format.select, []
    if select is not None and not isinstance(select, (Quest, DoubleSparsity)):
        reasons.append(f"{select.word} has no CPU kernel")
    if layer.block_size % TILE or layer.retention != Full():
        reasons.append(f"blocks of {layer.block_size} tokens are not selected: take a multiple of {TILE}")
    return reasons


def _reasons_against(codec: Codec | None, dim: int, block_size: int) -> list[str]:
    """Why kernels do not read a side. Subclasses of a codec may store anything."""
    reasons = []
    if codec is None:
        reasons.append("a side that lies in the other one has no CPU kernel")
    elif type(codec) not in KNOWN or (isinstance(codec, Dense) and codec.dtype not in DENSE):
        reasons.append(f"format {codec.id.partition('/')[0]} has no CPU kernel")
    elif type(codec) in TILED_ALONE and len(codec.planes(1, dim, block_size)[0].shape) < 4:
        word = codec.id.partition("/")[0]
        reasons.append(
            f"format {word} has a CPU kernel for tiled blocks of a multiple of 16 tokens, not of {block_size}"
        )
    if dim % HEAD_DIM_STEP or dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim {dim} is not a multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}")
    return reasons


def _reads_own_block(rule: Retention, block_size: int) -> bool:
    """Whether every token reads all of its own block before it."""
    match rule:
        case SlidingWindow(window) | SinksAndWindow(_, window):
            return window >= block_size
        case ChunkedLocal(chunk):
            return chunk % block_size == 0
    return True


def _reach(rule: Retention) -> dict[str, Any] | None:
    """A rule in the numbers that kernels know, None when they cannot say it."""
    match rule:
        case Full():
            return {}
        case SlidingWindow(window):
            return {"window": window}
        case SinksAndWindow(sinks, window):
            return {"sinks": sinks, "window": window}
        case ChunkedLocal(chunk):
            return {"chunk": chunk}
    return None


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows, as it is when they are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
