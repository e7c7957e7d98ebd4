"""The backend of CPUs: fused kernels for dense, scaled and coded caches. Answers are those of the reference.

What a step costs in Python does not grow with its context: one handle a group of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Rotation
from kvtrove.attention.cpu_plan import CpuPlan
from kvtrove.attention.expand import Expander, is_low_rank, reasons_against_low_rank
from kvtrove.attention.paged import (
    of_values,
    paged_selection,
    paged_side,
    reach_of,
    reads_own_block,
    reasons_against_selection,
    reasons_against_side,
    shape_of,
)
from kvtrove.kernels.attention import AttentionKernel, PagedLayer, paged_layer
from kvtrove.kv.formats.oscar import Oscar
from kvtrove.kv.spec import side_view


class CpuBackend:
    """An AttentionBackend of the C++ kernels. Results do not depend on batch, prefill chunks or number of threads.

    isa: instruction set (`kvtrove.kernels.isa`). num_threads: 0 is `kvtrove.kernels.threads()`.
    Raises ImportError when the extension is not built, ValueError when the processor lacks `isa`.
    """

    name = "cpu"

    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None:
        self.kernel = AttentionKernel(isa, num_threads)
        self.isa = kernels.isa(isa)
        self.expander = Expander(self.kernel, isa, self.paged)
        self._layers: dict[tuple[int, bool], tuple[AttentionLayer, PagedLayer]] = {}

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        where, reasons = f"layer {layer.index}", []
        if not device.startswith("cpu"):
            reasons.append(f"{where}: its cache is on {device}")
        if layer.num_heads % layer.kv_heads:
            reasons.append(f"{where}: {layer.num_heads} heads cannot share {layer.kv_heads} kv_heads evenly")
        parts = [((part.format.k, layer.k_dim), (of_values(part.format), layer.v_dim)) for part in layer.parts]
        sides = [side for part in parts for side in part]
        against = [reason for codec, dim in sides for reason in reasons_against_side(codec, dim, layer.block_size)]
        reasons.extend(f"{where}: {reason}" for reason in dict.fromkeys(against))
        if layer.format.select:
            reasons.extend(f"{where}: {reason}" for reason in reasons_against_selection(layer))
        if any(is_low_rank(part.format) for part in layer.parts):
            reasons.extend(f"{where}: {reason}" for reason in reasons_against_low_rank(layer))
        if reach_of(layer.retention) is None:
            reasons.append(f"{where}: retention {type(layer.retention).__name__} is not sinks and a window")
        elif layer.format.whole_block and not reads_own_block(layer.retention, layer.block_size):
            reasons.append(f"{where}: {layer.retention.id} cuts through a token's own block of {layer.block_size}")
        if layer.first is not None and (reach_of(layer.retention) or {}).get("sinks", 0) > layer.reach.begin:
            reasons.append(f"{where}: first={layer.reach.begin} has fewer tokens than {layer.retention.id}")
        return reasons

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        return CpuPlan(batch)

    def store(self, k: Tensor, v: Tensor, layer: AttentionLayer, plan: CpuPlan, rotate: Rotation | None = None) -> None:
        if layer.first is not None:
            self._store_first(k if rotate is None else rotate(k), v, layer.first, plan)
        if is_low_rank(layer.format):
            k = k if rotate is None or layer.format.rope == "pre" else rotate(k)
            layer.format.encode(k, v, layer.view, plan.batch.groups[layer.group].slots)
            return
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
        if not is_one_read(layer):
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
        if k is not None:
            plan.leave_rotation(layer, rotate)
        if not layer.format.whole_block and k is not None and v is not None:
            self.store(k, v, layer, plan, rotate)
        if rotate is not None:
            q, k = rotate(q), None if k is None else rotate(k)
        q = _rows(q)
        out = q.new_empty((*q.shape[:-1], layer.v_dim))
        if not layer.format.whole_block:
            *parts, last = layer.parts
            self._attend(last, plan, q, out, earlier=self._attend_parts(q, parts, plan))
            return out
        if layer.first is not None and k is not None and v is not None:
            self._store_first(k, v, layer.first, plan)
        open_blocks = plan.open_blocks(layer.block_size)
        own_k, own_v = plan.shared.of(layer, k, v, open_blocks.own)
        earlier = self._attend_parts(q, layer.parts, plan)
        logits = layer.sink_logits
        shape = replace(
            shape_of(layer), sinks=0, window=0, chunk=layer.block_size, sealed=0, begin=0, sink_logits=logits
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
            self._attend(part, plan, queries, out, lse, earlier)
            if isinstance(of_values, Oscar):
                assert earlier is None, "what is not turned would be turned back"
                out = of_values.turn_back(out).float()
            earlier = out, lse
        return earlier

    def _attend(
        self,
        layer: AttentionLayer,
        plan: CpuPlan,
        q: Tensor,
        out: Tensor,
        lse: Tensor | None = None,
        earlier: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """`AttentionKernel.attend` over one storage of a layer."""
        if not is_low_rank(layer.format):
            self.kernel.attend(self.paged(layer), plan.batch_of(layer), q, out, lse, earlier)
            return
        dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
        for part in plan.expansions(layer):
            numbers = part.into(layer, self.expander, dtype, plan.unturned.get(layer.storage))
            of_lse = None if lse is None else lse[part.rows]
            before = None if earlier is None else (earlier[0][part.rows], earlier[1][part.rows])
            self.kernel.attend(numbers, part.batch, q[part.rows], out[part.rows], of_lse, before)

    def paged(self, layer: AttentionLayer) -> PagedLayer:
        """The layer as kernels know it. ValueError when they do not serve it."""
        key = layer.index, layer.reach.limit is None
        known = self._layers.get(key)
        if known is None or known[0] is not layer:
            if reasons := self.reasons_against(layer, "cpu"):
                raise ValueError("; ".join(reasons))
            sides = (layer.format.k, layer.k_dim), (of_values(layer.format), layer.v_dim)
            k, v = (paged_side(codec, dim, side_view(layer.view, codec.side)) for codec, dim in sides if codec)
            if layer.format.v is None:
                v = replace(v, tiled=False, row=layer.k_dim, in_tiles=k.tiled)
            known = self._layers[key] = layer, paged_layer(k, v, shape_of(layer), paged_selection(layer))
        return known[1]


def is_one_read(layer: AttentionLayer) -> bool:
    """Whether queries read all their keys in one storage, as it lies."""
    return not layer.format.whole_block and layer.first is None and not is_low_rank(layer.format)


@dataclass(frozen=True)
class CpuTokens:
    """Single tokens of a layer in the cache, by the kernels. Formats that encode token by token."""

    backend: CpuBackend
    layer: AttentionLayer

    def keys(self, slots: Tensor) -> Tensor:
        """Keys in slots int64 [n] as numbers, float32 [n, kv_heads, k_dim]."""
        return self._read(True, slots, self.layer.k_dim)

    def values(self, slots: Tensor) -> Tensor:
        """Values, float32 [n, kv_heads, v_dim]."""
        return self._read(False, slots, self.layer.v_dim)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Tokens of each kv head as they are stored, from slots int64 [kv_heads, n] to slots int64 [n]."""
        self.backend.kernel.move(self.backend.paged(self.layer), sources, targets)

    def _read(self, keys: bool, slots: Tensor, dim: int) -> Tensor:
        numbers = torch.empty(self.layer.kv_heads, len(slots), dim)
        return self.backend.kernel.read(self.backend.paged(self.layer), keys, slots, numbers).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows, as it is when they are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
