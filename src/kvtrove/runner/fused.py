"""Runs of layers in one call a step. A layer that the CPU kernels do not serve breaks a run, and is computed alone.

    layer    0    1    2    3    4    5
    kernels  yes  yes  no   yes  yes  yes
             └─ one ─┘      └─── one ───┘       layer 2: attention by its own backend, the rest as ever

A run must follow from layer to layer: each but the last makes the projections of the next (`kernels.decoder.ranges`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionLayer, Rotation
from kvtrove.attention.cells import CellsBackend, CellsPlan
from kvtrove.attention.cpu import CpuBackend, is_one_read
from kvtrove.attention.cpu_plan import CpuPlan
from kvtrove.kernels.decoder import CacheOf, DecoderKernel, LayerCall, ranges
from kvtrove.models.decoder import Model


class FusedLayers:
    """The runs of a model. Results are those of `AttentionBackend.run` and `Between`, layer by layer.

    layers, backends: of the layers with attention.
    """

    def __init__(self, model: Model, layers: Sequence[AttentionLayer], backends: Sequence[AttentionBackend]) -> None:
        found = {one.index: _read(one, backend) for one, backend in zip(layers, backends, strict=True)}
        reads = {index: read for index, read in found.items() if read is not None and model.fits_range(index)}
        served = [call if index in reads else None for index, call in enumerate(model.calls)]
        self._num_layers = len(model.layers)
        borders = {model.last_storing, model.last_storing + 1} if model.ends_early else set()
        self._runs: Mapping[int, tuple[int, DecoderKernel]] = {
            first: (stop, _kernel(served[first:stop], [reads[i] for i in range(first, stop)]))
            for first, stop in _cut(ranges(served), borders)
        }

    @property
    def whole(self) -> bool:
        """Whether runs have all layers, so that torch does no large work in a step."""
        return sum(stop - first for first, stop in self.runs) == self._num_layers

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Half-open ranges of layers."""
        return [(first, stop) for first, (stop, _) in self._runs.items()]

    def __call__(
        self, first: int, plan: CpuPlan | CellsPlan, x: Tensor, projected: Tensor, rotations: Sequence[Rotation]
    ) -> tuple[int, Tensor] | None:
        """The layer behind the run that begins at `first`, and what its last `Between` gives; None where none begins.

        x: hidden states [T, hidden], updated in place. projected: the first layer's projections [T, ...], overwritten.
        rotations: what layers name (`LayerCall.rope`).
        """
        if first not in self._runs:
            return None
        stop, kernel = self._runs[first]
        return stop, kernel(x, projected, plan.batches, [(rotate.cos, rotate.sin) for rotate in rotations])


def _cut(found: Iterable[tuple[int, int]], borders: Collection[int]) -> Iterator[tuple[int, int]]:
    """Ranges in pieces that no border lies inside of."""
    for first, stop in found:
        yield from pairwise([first, *sorted(one for one in borders if first < one < stop), stop])


def _read(layer: AttentionLayer, backend: AttentionBackend) -> tuple[CpuBackend, CacheOf] | None:
    """The kernels that read a layer, and where; None where others do, or several reads make one."""
    if isinstance(backend, CellsBackend):
        one, batch, parts = backend.one_head(layer), layer.cell, layer.kv_heads
        backend = backend.inner
    else:
        one, batch, parts = layer, layer.group, 1
    if not isinstance(backend, CpuBackend) or not is_one_read(one):
        return None
    return backend, CacheOf(backend.paged(one), batch, parts)


def _kernel(calls: Sequence[LayerCall | None], reads: Sequence[tuple[CpuBackend, CacheOf]]) -> DecoderKernel:
    return DecoderKernel(
        reads[0][0].kernel, [cache for _, cache in reads], [call for call in calls if call is not None]
    )
