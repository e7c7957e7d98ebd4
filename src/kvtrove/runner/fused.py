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
from kvtrove.attention.cpu import CpuBackend, is_one_read
from kvtrove.attention.cpu_plan import CpuPlan
from kvtrove.kernels.decoder import DecoderKernel, LayerCall, ranges
from kvtrove.models.decoder import Model


class FusedLayers:
    """The runs of a model. Results are those of `AttentionBackend.run` and `Between`, layer by layer.

    layers, backends: of the layers with attention.
    """

    def __init__(self, model: Model, layers: Sequence[AttentionLayer], backends: Sequence[AttentionBackend]) -> None:
        chosen = {layer.index: one for layer, one in zip(layers, backends, strict=True)}
        own = {layer.index: layer for layer in layers}
        served = [
            call if isinstance(chosen.get(i), CpuBackend) and is_one_read(own[i]) and model.fits_range(i) else None
            for i, call in enumerate(model.calls)
        ]
        self._num_layers = len(model.layers)
        borders = {model.last_storing, model.last_storing + 1} if model.ends_early else set()
        self._runs: Mapping[int, tuple[int, DecoderKernel]] = {
            first: (stop, _kernel(served[first:stop], [own[i] for i in range(first, stop)], chosen[first]))
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
        self, first: int, plan: CpuPlan, x: Tensor, projected: Tensor, rotations: Sequence[Rotation]
    ) -> tuple[int, Tensor] | None:
        """The layer behind the run that begins at `first`, and what its last `Between` gives; None where none begins.

        x: hidden states [T, hidden], updated in place. projected: the first layer's projections [T, ...], overwritten.
        rotations: what layers name (`LayerCall.rope`).
        """
        if first not in self._runs:
            return None
        stop, kernel = self._runs[first]
        batches = [plan.group(index) for index in range(len(plan.batch.groups))]
        return stop, kernel(x, projected, batches, [(rotate.cos, rotate.sin) for rotate in rotations])


def _cut(found: Iterable[tuple[int, int]], borders: Collection[int]) -> Iterator[tuple[int, int]]:
    """Ranges in pieces that no border lies inside of."""
    for first, stop in found:
        yield from pairwise([first, *sorted(one for one in borders if first < one < stop), stop])


def _kernel(
    calls: Sequence[LayerCall | None], layers: Sequence[AttentionLayer], backend: AttentionBackend
) -> DecoderKernel:
    assert isinstance(backend, CpuBackend)
    paged = [(backend.paged(layer), layer.group) for layer in layers]
    return DecoderKernel(backend.kernel, paged, [call for call in calls if call is not None])
