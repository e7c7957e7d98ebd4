"""What a cached token is made of: planes, formats, layers, groups. Metadata only: no torch.

One block is one contiguous row of bytes. A row belongs to one *group* of layers and holds, for each of them, the planes
of its format (k, v, scales, ...) side by side:

    row of group g, `block_bytes` long
    | layer 0: k plane | layer 0: v plane | layer 4: k plane | layer 4: v plane | ... | padding |
      ^ 64-byte aligned

All groups have rows of the same size, so one pool of block ids and one arena serve every kind of layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kvtrove.kv.retention import Full, Retention, peak_blocks

if TYPE_CHECKING:
    from torch import Tensor

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int8": 1, "uint8": 1}
ALIGNMENT = 64  # bytes: a cache line, and what vector loads like


def align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Plane:
    """One strided array inside a block's row. `shape` is that of one block."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


class KVFormat(Protocol):
    """How K/V are encoded: a frozen dataclass whose fields are its identity (they enter the fingerprint).

    `name` is what users write (``--kv-cache-dtype``). `tail` is the format of an open block when this one needs
    a whole block to encode, else None. `rope` says whether keys are stored after or before rotation.
    """

    @property
    def name(self) -> str: ...
    @property
    def lossless_for(self) -> tuple[str, ...]:
        """Dtypes whose values survive encode + decode bit for bit."""
        ...

    @property
    def tail(self) -> KVFormat | None: ...
    @property
    def rope(self) -> Literal["post", "pre"]: ...

    def planes(self, kv_heads: int, head_dim: int, block_size: int) -> tuple[Plane, ...]:
        """The planes of one layer in one block."""
        ...

    def encode(self, k: Tensor, v: Tensor, view: Mapping[str, Tensor], slots: Tensor) -> None:
        """Write k, v [T, kv_heads, head_dim] into the slots int64 [T] (= block_id * block_size + offset).

        view: plane name -> tensor [num_blocks, *plane.shape].
        """
        ...

    def decode(self, view: Mapping[str, Tensor], block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of the blocks int64 [n], each [n * block_size, kv_heads, head_dim]: the reference read."""
        ...


@dataclass(frozen=True)
class LayerKV:
    """What one layer keeps. `source` is the earlier layer whose storage it reads instead of its own (CLA, YOCO)."""

    layer: int
    kv_heads: int
    head_dim: int
    format: KVFormat
    retention: Retention = field(default_factory=Full)
    source: int | None = None


@dataclass(frozen=True)
class KVGroup:
    """Layers that share block tables. `offsets[layer][plane]` is a byte position in the row."""

    index: int
    retention: Retention
    layers: tuple[LayerKV, ...]
    offsets: Mapping[int, Mapping[str, int]]
    used_bytes: int


@dataclass(frozen=True)
class KVCacheSpec:
    """The geometry of a whole cache. Two caches with the same fingerprint can read each other's rows."""

    layers: tuple[LayerKV, ...]
    block_size: int

    def check(self) -> list[str]:
        """Why this combination cannot work, in words; empty when it can."""
        reasons = []
        if self.block_size < 1:
            reasons.append(f"block_size {self.block_size} must be at least 1")
        own = {layer.layer: layer for layer in self.layers if layer.source is None}
        if not own:
            reasons.append("no layer stores keys and values")
        if len({layer.layer for layer in self.layers}) != len(self.layers):
            reasons.append("a layer is listed twice")
        for layer in self.layers:
            if layer.kv_heads < 1 or layer.head_dim < 1:
                reasons.append(
                    f"layer {layer.layer}: kv_heads {layer.kv_heads} and head_dim {layer.head_dim} must be positive"
                )
            for name, least in (("window", 1), ("chunk", 1), ("sinks", 0)):
                if (value := getattr(layer.retention, name, least)) < least:
                    reasons.append(f"layer {layer.layer}: {name} {value} must be at least {least}")
            if layer.source is None:
                continue
            source = own.get(layer.source)
            if source is None or layer.source >= layer.layer:
                reasons.append(
                    f"layer {layer.layer}: source {layer.source} is not an earlier layer with storage of its own"
                )
            elif (source.kv_heads, source.head_dim, source.retention) != (
                layer.kv_heads,
                layer.head_dim,
                layer.retention,
            ):
                reasons.append(f"layer {layer.layer}: differs in heads or retention from its source {layer.source}")
        return reasons

    @cached_property
    def groups(self) -> tuple[KVGroup, ...]:
        """Layers of equal retention, split so that all groups have about the same bytes per block.

        The size to aim at is the smallest bucket's (the largest's when they differ by less than half, since padding
        then costs less than more tables), as in vLLM's hybrid manager. Sliding layers 22 : full layers 4 become
        6 + 1 groups of at most 4 layers.
        """
        buckets: dict[Retention, list[LayerKV]] = {}
        for layer in self.layers:
            if layer.source is None:
                buckets.setdefault(layer.retention, []).append(layer)
        sizes = [sum(map(self.layer_bytes, bucket)) for bucket in buckets.values()]
        target = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
        groups: list[KVGroup] = []
        for (retention, bucket), size in zip(buckets.items(), sizes, strict=True):
            parts = min(len(bucket), -(-size // target))
            for i in range(parts):
                members = bucket[i * len(bucket) // parts : (i + 1) * len(bucket) // parts]
                groups.append(self._group(len(groups), retention, tuple(members)))
        return tuple(groups)

    def _group(self, index: int, retention: Retention, members: tuple[LayerKV, ...]) -> KVGroup:
        at = 0
        offsets: dict[int, dict[str, int]] = {}
        for layer in members:
            offsets[layer.layer] = {}
            for plane in self.planes(layer):
                offsets[layer.layer][plane.name] = at
                at += align(plane.nbytes)
        return KVGroup(index, retention, members, offsets, at)

    @cached_property
    def group_of(self) -> dict[int, int]:
        """Layer index -> group index, for layers with a source as well."""
        own = {layer.layer: group.index for group in self.groups for layer in group.layers}
        return {layer.layer: own[layer.layer if layer.source is None else layer.source] for layer in self.layers}

    def planes(self, layer: LayerKV) -> tuple[Plane, ...]:
        return layer.format.planes(layer.kv_heads, layer.head_dim, self.block_size)

    def layer_bytes(self, layer: LayerKV) -> int:
        """Bytes of one layer in one block, alignment included."""
        return sum(align(plane.nbytes) for plane in self.planes(layer))

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one row: the largest group's."""
        return max(group.used_bytes for group in self.groups)

    def blocks_for(self, num_tokens: int, chunk: int) -> int:
        """Most blocks that a sequence of `num_tokens` ever holds, all groups together, with steps of up to `chunk`."""
        return sum(peak_blocks(group.retention, num_tokens, chunk, self.block_size) for group in self.groups)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that change with anything that changes the meaning of a row."""
        return hashlib.sha256(json.dumps(_describe(self), sort_keys=True).encode()).digest()


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    return value
