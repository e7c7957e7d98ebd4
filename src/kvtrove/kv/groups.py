"""Layers that share block tables: all groups have rows of about the same size, so that one pool serves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.plane import Plane, align, cut_evenly
from kvtrove.kv.retention import Beginning, Retention

if TYPE_CHECKING:
    from kvtrove.kv.spec import LayerKV

Planes = Callable[["LayerKV"], Iterable[Plane]]


@dataclass(frozen=True)
class KVGroup:
    """Layers that share block tables. `offsets[layer][plane]` is a byte position in the row."""

    index: int
    retention: Retention
    layers: tuple[LayerKV, ...]
    offsets: Mapping[int, Mapping[str, int]]
    used_bytes: int

    @property
    def is_beginning(self) -> bool:
        """Whether a sequence holds blocks of it for its first tokens alone."""
        return isinstance(self.retention, Beginning)


def group_layers(layers: Sequence[LayerKV], planes: Planes, size_of: Callable[[LayerKV], int]) -> tuple[KVGroup, ...]:
    """Groups of layers with storage of their own. planes, size_of: of a layer in one block, bytes with alignment.

    Layers of equal retention are split so that all groups have about the same bytes per block. The size to aim at is
    the smallest bucket's (the largest's when they differ by less than half, since padding then costs less than more
    tables), as in vLLM's hybrid manager. Sliding layers 22 : full layers 4 become 6 + 1 groups of at most 4 layers.
    First tokens (`LayerKV.first`) come behind them, in groups of as many layers as fit into a row: few tokens do not
    make the rows of all others larger.
    """
    buckets: dict[Retention, list[LayerKV]] = {}
    for layer in layers:
        buckets.setdefault(layer.retention, []).append(layer)
    sizes = [sum(map(size_of, bucket)) for bucket in buckets.values()]
    target = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    runs = [
        [*members]
        for bucket, size in zip(buckets.values(), sizes, strict=True)
        for members in cut_evenly(bucket, [*map(size_of, bucket)], min(len(bucket), -(-size // target)))
    ]
    row = max(sum(map(size_of, run)) for run in runs)
    runs += _fitting([one for layer in layers if (one := layer.beginning)], size_of, row)
    return tuple(_group(index, tuple(run), planes, size_of) for index, run in enumerate(runs))


def numbers_of(layers: Iterable[LayerKV], groups: Iterable[KVGroup]) -> dict[int, int]:
    """Layer index -> index of the one of `groups` that it reads, its own or its source's."""
    own = {one.layer: group.index for group in groups for one in group.layers}
    sources = {layer.layer: layer.layer if layer.source is None else layer.source for layer in layers}
    return {layer: own[source] for layer, source in sources.items() if source in own}


def _group(index: int, members: tuple[LayerKV, ...], planes: Planes, size_of: Callable[[LayerKV], int]) -> KVGroup:
    at = 0
    offsets: dict[int, dict[str, int]] = {}
    for layer in members:
        offsets[layer.layer] = {}
        start = at
        for plane in planes(layer):
            offsets[layer.layer][plane.name] = at
            at += align(plane.nbytes)
        at = start + size_of(layer)
    return KVGroup(index, members[0].retention, members, offsets, at)


def _fitting(layers: Sequence[LayerKV], size_of: Callable[[LayerKV], int], row: int) -> list[list[LayerKV]]:
    """Runs of layers of equal retention, each as long as fits into `row` bytes, or of one layer."""
    runs: dict[Retention, list[list[LayerKV]]] = {}
    for layer in layers:
        mine = runs.setdefault(layer.retention, [[]])
        if mine[-1] and sum(map(size_of, [*mine[-1], layer])) > row:
            mine.append([])
        mine[-1].append(layer)
    return [run for mine in runs.values() for run in mine]
