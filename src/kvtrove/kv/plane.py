"""What rows, seats and checkpoints are divided into: typed arrays at aligned places. Metadata only: no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

T = TypeVar("T")

DTYPE_BYTES = {
    **{"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2},
    **{"float8_e4m3fn": 1, "int8": 1, "uint8": 1},
}
ALIGNMENT = 64  # bytes: a cache line, and what vector loads like


def align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Plane:
    """One strided array inside a row. `shape` is that of one block, or of one seat."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class LayerState:
    """What a layer keeps of all tokens so far together, instead of something of each: a running state.

    kind: stands for what the numbers mean ("conv/1"); it enters the fingerprint. planes: of one sequence. A state
    begins as zeros, and is that of the tokens computed so far: it cannot go back, only be loaded from a checkpoint.
    """

    layer: int
    kind: str
    planes: tuple[Plane, ...]

    @property
    def nbytes(self) -> int:
        return sum(align(plane.nbytes) for plane in self.planes)


def places(planes: Iterable[tuple[int, Plane]], start: int = 0) -> Mapping[int, Mapping[str, int]]:
    """Layer -> name of a plane -> its byte position, the (layer, plane) pairs one behind the other from `start` on."""
    found: dict[int, dict[str, int]] = {}
    for layer, plane in planes:
        found.setdefault(layer, {})[plane.name] = start
        start += align(plane.nbytes)
    return found


def cut_evenly(layers: Sequence[T], sizes: list[int], parts: int) -> Iterator[Sequence[T]]:
    """Runs of layers of about equal bytes, none empty. A run ends where that is nearest to its share of the total."""
    total, done, first = sum(sizes), 0, 0
    for part in range(1, parts + 1):
        stop, most = first + 1, len(layers) - (parts - part)
        done += sizes[first]
        while stop < most and (part == parts or 2 * done + sizes[stop] <= 2 * total * part // parts):
            done += sizes[stop]
            stop += 1
        yield layers[first:stop]
        first = stop
