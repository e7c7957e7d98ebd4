"""A range of a decoder's layers in one call a step (cpu/decoder.h)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvtrove.kernels import _extension
from kvtrove.kernels.attention import AttentionKernel, PagedBatch, PagedLayer, angles_of
from kvtrove.kernels.between import Between, Norm, norm_of


@dataclass(frozen=True, eq=False)
class LayerCall:
    """What one layer does beside attention. rope: number of its rotation among a step's.

    stores: its projections are queries, keys and values; else queries alone. q_norm, k_norm: of every head, [head_dim].
    """

    between: Between
    rope: int
    stores: bool
    q_norm: Norm | None = None
    k_norm: Norm | None = None


def ranges(calls: Sequence[LayerCall | None]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of layers that one call can take: each layer but the last makes the projections of the next.

    calls: of each layer; None where a layer is not for these kernels.
    """
    start = None
    for stop, (call, behind) in enumerate(zip(calls, (*calls[1:], None), strict=True), 1):
        if call is None:
            continue
        start = stop - 1 if start is None else start
        if behind is None or not call.between.has_next:
            yield start, stop
            start = None


class CacheOf(NamedTuple):
    """Where a layer reads its cache, and the number of its batch among a step's.

    parts: 1, or as many shares of its heads read tables of their own: `layer` is one share, and each has a batch, from
    `batch` on.
    """

    layer: PagedLayer
    batch: int
    parts: int = 1


class DecoderKernel:
    """Consecutive layers, each from its projections on: norms of heads, rotation, cache, attention, then `Between`.

    The bits are those of calling `AttentionKernel` and `Between` in turn. ValueError when a layer does not follow from
    the one before it.
    """

    def __init__(self, kernel: AttentionKernel, layers: Sequence[CacheOf], calls: Sequence[LayerCall]) -> None:
        self._decoder, self._kept = _extension().Decoder(kernel.handle), (tuple(layers), tuple(calls))
        for cache, call in zip(layers, calls, strict=True):
            norms = [norm_of(norm, cache.layer.k_dim, call.between.dtype) for norm in (call.q_norm, call.k_norm)]
            where = cache.batch, cache.parts, call.rope, call.stores
            self._decoder.add(cache.layer.handle, call.between.handle, *where, *norms[0], *norms[1])
        first, (layer, _, parts) = calls[0], layers[0]
        arrays = (layer.queries(1), layer.keys(1), layer.values(1)) if first.stores else (layer.queries(1),)
        self.projected = sum(parts * heads * dim for _, heads, dim in arrays)
        self.dtype, self.hidden = first.between.dtype, first.between.hidden
        self.max_head_dim = max(cache.layer.k_dim for cache in layers)

    def __call__(
        self,
        x: Tensor,
        projected: Tensor,
        batches: Sequence[PagedBatch],
        rotations: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """x [T, hidden], updated in place; projected [T, projections of the first layer], overwritten.

        rotations: cos and sin, each [T, 1, half] in the dtype of x. Returns what the last `Between` does. IndexError
        when a block that is read is not held, TypeError for other arrays.
        """
        rows, dtype = x.shape[0], self.dtype
        fits = x.shape == (rows, self.hidden) and projected.shape == (rows, self.projected)
        plain = x.dtype == projected.dtype == dtype and x.is_contiguous() and projected.is_contiguous() and x.is_cpu
        if not (fits and plain) or any(batch.num_tokens != rows for batch in batches):
            raise TypeError(
                f"x and projected are {x.dtype} {list(x.shape)} and {projected.dtype} {list(projected.shape)} for "
                f"batches of {[batch.num_tokens for batch in batches]} tokens; contiguous {dtype} [T, {self.hidden}] "
                f"and [T, {self.projected}] on the CPU are needed"
            )
        angles = [angles_of(turn, x, rows, self.max_head_dim) for turn in rotations]
        out = x.new_empty((rows, self._decoder.outputs))
        addresses = (one.data_ptr() for one in (x, projected, out))
        self._decoder.run(*addresses, dtype == torch.bfloat16, [batch.handle for batch in batches], angles)
        return out
