"""The backend of CPUs: fused kernels for dense, scaled and coded caches. Answers are those of the reference.

What a step costs in Python does not grow with its context: one handle a group of layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Rotation
from kvtrove.kernels.attention import (
    HEAD_DIM_STEP,
    MAX_HEAD_DIM,
    AttentionKernel,
    PagedBatch,
    PagedLayer,
    PagedShape,
    PagedSide,
    paged_batch,
    paged_layer,
)
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.formats.fp8 import Fp8
from kvtrove.kv.formats.int4 import GROUP, Int4, Int4Rotated
from kvtrove.kv.formats.int8 import Int8
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.spec import Codec, Planes, side_view

DENSE = ("float32", "float16", "bfloat16")
TILED_ALONE = (Fp8, Int4, Int4Rotated)
KNOWN = (Dense, Int8, *TILED_ALONE)


@dataclass(frozen=True)
class CpuPlan:
    """A step, and its tables as the kernels take them, for each group of layers met so far."""

    batch: AttentionBatch
    _groups: dict[int, PagedBatch] = field(default_factory=dict)

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


class CpuBackend:
    """An AttentionBackend of the C++ kernels. Results do not depend on batch, prefill chunks or number of threads.

    isa: instruction set (`kvtrove.kernels.isa`). num_threads: 0 is `kvtrove.kernels.threads()`.
    Raises ImportError when the extension is not built, ValueError when the processor lacks `isa`.
    """

    name = "cpu"

    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None:
        self.kernel = AttentionKernel(isa, num_threads)
        self.isa = kernels.isa(isa)
        self._layers: dict[int, tuple[AttentionLayer, PagedLayer]] = {}

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        where, reasons = f"layer {layer.index}", []
        if not device.startswith("cpu"):
            reasons.append(f"{where}: its cache is on {device}")
        if layer.num_heads % layer.kv_heads:
            reasons.append(f"{where}: {layer.num_heads} heads cannot share {layer.kv_heads} kv_heads evenly")
        sides = (layer.format.k, layer.k_dim), (layer.format.v, layer.v_dim)
        against = [reason for codec, dim in sides for reason in _reasons_against(codec, dim, layer.block_size)]
        reasons.extend(f"{where}: {reason}" for reason in dict.fromkeys(against))
        if _reach(layer.retention) is None:
            reasons.append(f"{where}: retention {type(layer.retention).__name__} is not sinks and a window")
        return reasons

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        return CpuPlan(batch)

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
        paged, batch = self.paged(layer), plan.group(layer.group)
        angles = None if rotate is None else (rotate.cos, rotate.sin)
        q = _rows(q)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        k, v = (None, None) if k is None or v is None else (_rows(k), _rows(v))
        self.kernel.run(paged, batch, q, k, v, out, angles)
        return out

    def paged(self, layer: AttentionLayer) -> PagedLayer:
        """The layer as kernels know it. ValueError when they do not serve it."""
        known = self._layers.get(layer.index)
        if known is None or known[0] is not layer:
            if reasons := self.reasons_against(layer, "cpu"):
                raise ValueError("; ".join(reasons))
            sides = (layer.format.k, layer.k_dim), (layer.format.v, layer.v_dim)
            k, v = (paged_side(codec, dim, side_view(layer.view, codec.side)) for codec, dim in sides if codec)
            shape = PagedShape(
                num_heads=layer.num_heads,
                kv_heads=layer.kv_heads,
                block_size=layer.block_size,
                scale=layer.scale,
                softcap=layer.softcap or 0.0,
                sink_logits=layer.sink_logits,
                **(_reach(layer.retention) or {}),
            )
            known = self._layers[layer.index] = layer, paged_layer(k, v, shape)
        return known[1]


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
    return PagedSide(str(data.dtype).removeprefix("torch."), tiled, dim, data, scale)


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
