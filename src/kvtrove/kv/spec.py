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
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.compaction.fits import reasons_against
from kvtrove.kv.groups import KVGroup, group_layers, numbers_of
from kvtrove.kv.plane import LayerState, Plane, align, places
from kvtrove.kv.retention import Beginning, Full, Retention, peak_blocks
from kvtrove.kv.selection.selector import Selector
from kvtrove.kv.source import reasons_against_reading

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["k", "v"]
Rope = Literal["post", "pre"]
Planes = Mapping[str, "Tensor"]
"""Name -> tensor [num_blocks, *plane.shape]."""


class Codec(Protocol):
    """How one side of a layer, K or V, is encoded: a frozen dataclass.

    A codec names its planes for itself: "data" holds the elements, "scale", "zero" and others what they need.
    `id` ("int8/1") stands for all that decides the meaning of the bytes but heads, dimension and block size: it enters
    the fingerprint, so that a rename never invalidates what is stored, and a change of the encoding counts it up.
    """

    @property
    def id(self) -> str: ...
    @property
    def side(self) -> Side: ...
    @property
    def whole_block(self) -> bool:
        """Whether a block is encoded when it is full (`seal`), and until then read as it was computed."""
        ...

    @property
    def rope(self) -> Rope:
        """Whether keys are stored after their rotation or before it."""
        ...

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        """Why it cannot encode such vectors; empty when it can."""
        ...

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        """Its planes in one block."""
        ...

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        """Write x [T, heads, dim] into slots int64 [T] (= block_id * block_size + offset). view: its own planes."""
        ...

    def seal(self, x: Tensor, view: Planes, rows: Tensor) -> None:
        """Write whole blocks x [C, block_size, heads, dim] into the rows int64 [C]."""
        ...

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """[n * block_size, heads, dim] of the blocks int64 [n], in a floating dtype: the reference read."""
        ...


@dataclass(frozen=True)
class KVFormat:
    """How a layer's K and V are stored, side by side.

    k, v: None is a side that is read out of the other one: V out of the first `v_dim` elements of K (the latent of
    MLA), K out of V (layers whose keys are their values).
    extra_bytes: per token beside K and V, such as the index keys of sparse attention; planned, not served.
    select: which blocks a query reads (`kv.selection`); None is all. Its summaries are planes beside K and V.
    """

    k: Codec | None
    v: Codec | None
    extra_bytes: int = 0
    select: Selector | None = None

    @property
    def sides(self) -> tuple[Codec, ...]:
        return tuple(codec for codec in (self.k, self.v) if codec is not None)

    @property
    def name(self) -> str:
        """For people: "int8", or "k=int8+v=int4r"."""
        words = {codec.side: codec.id.partition("/")[0] for codec in self.sides}
        names = set(words.values())
        return names.pop() if len(names) == 1 else "+".join(f"{side}={word}" for side, word in words.items())

    @property
    def id(self) -> str:
        """Stands for the meaning of the bytes; defaults are left out."""
        words = [f"{codec.side}={codec.id}" for codec in self.sides]
        words += [f"extra={self.extra_bytes}"] if self.extra_bytes else []
        return "+".join([*words, *([self.select.id] if self.select else [])])

    @property
    def whole_block(self) -> bool:
        """Whether queries read their own block as it was computed, and older ones as they were sealed."""
        return any(codec.whole_block for codec in self.sides)

    @property
    def rope(self) -> Rope:
        return "post" if self.k is None else self.k.rope

    def problems(self, layer: LayerKV, block_size: int) -> list[str]:
        """Why it cannot store such a layer."""
        reasons = [] if self.sides else ["neither K nor V is stored"]
        for codec in self.sides:
            reasons += codec.problems(layer.heads, layer.k_dim if codec.side == "k" else layer.v_dim, block_size)
        if self.select and (self.whole_block or self.rope == "pre" or len(self.sides) < 2):
            what = self.name if len(self.sides) > 1 else "one vector for keys and values"
            reasons.append(f"{self.select.word} compares keys as attention reads them, unlike {what}: leave it out")
        return reasons + (self.select.problems(layer, block_size) if self.select else [])

    def planes(self, layer: LayerKV, block_size: int) -> tuple[Plane, ...]:
        """The planes of one layer in one block: "k", "k_scale", ..., "v", ..."""
        found = []
        for codec in self.sides:
            dim = layer.k_dim if codec.side == "k" else layer.v_dim
            for plane in codec.planes(layer.heads, dim, block_size):
                found.append(replace(plane, name=_plane_name(codec.side, plane.name)))
        if self.select:
            found += self.select.planes(layer, block_size)
        if self.extra_bytes:
            found.append(Plane("extra", "uint8", (block_size, self.extra_bytes)))
        return tuple(found)

    def encode(self, k: Tensor, v: Tensor, view: Planes, slots: Tensor) -> None:
        """Write k, v [T, heads, dim] into the slots int64 [T]. view: all planes of the layer."""
        for codec in self.sides:
            codec.encode(k if codec.side == "k" else v, side_view(view, codec.side), slots)

    def summarise(self, view: Planes, rows: Tensor) -> None:
        """Write what queries choose by, of the full blocks int64 [C] and their keys as they are read."""
        assert self.select is not None, "the caller looked"
        assert self.k is not None, "checked by `problems`"
        k = self.k.decode(side_view(view, "k"), rows).float()
        self.select.summarise(k.view(len(rows), -1, *k.shape[1:]), view, rows)

    def seal(self, k: Tensor, v: Tensor, view: Planes, rows: Tensor) -> None:
        """Write whole blocks k, v [C, block_size, heads, dim] into the rows int64 [C]."""
        for codec in self.sides:
            codec.seal(k if codec.side == "k" else v, side_view(view, codec.side), rows)

    def decode(self, view: Planes, rows: Tensor, v_dim: int | None = None) -> tuple[Tensor, Tensor]:
        """K and V of the blocks int64 [n], each [n * block_size, heads, dim]. v_dim: of values read out of keys."""
        read = {codec.side: codec.decode(side_view(view, codec.side), rows) for codec in self.sides}
        k, v = read.get("k"), read.get("v")
        if k is None:
            assert v is not None, "checked by `problems`"
            k = v
        return k, k[..., :v_dim] if v is None else v


def _plane_name(side: str, name: str) -> str:
    return side if name == "data" else f"{side}_{name}"


def side_view(view: Planes, side: Side) -> dict[str, Tensor]:
    """Planes of one side under the names that its codec knows."""
    start = f"{side}_"
    return {
        "data" if name == side else name.removeprefix(start): plane
        for name, plane in view.items()
        if name == side or name.startswith(start)
    }


@dataclass(frozen=True)
class First:
    """The first tokens of every sequence, which attention leans on (arXiv 2309.17453), in a format of their own."""

    tokens: int  # a multiple of the block size
    format: KVFormat

    def problems(self, layer: LayerKV, block_size: int) -> list[str]:
        tokens, stored, reasons = self.tokens, self.format, self.format.problems(layer, block_size)
        if tokens % block_size:
            more = -(-tokens // block_size) * block_size
            reasons.append(f"first={tokens} is no multiple of the block size {block_size}: write first={more}")
        if stored.whole_block or stored.rope == "pre":
            reasons.append(f"first tokens are stored one by one, as {stored.name} does not: take bf16, int8 or int4r")
        return [*reasons, *([f"first={tokens} goes with no selection of blocks"] if layer.format.select else [])]


@dataclass(frozen=True)
class LayerKV:
    """What one layer keeps: `heads` keys of k_dim elements and values of v_dim per token.

    source: the earlier layer whose storage it reads instead of its own, in that layer's format. source_heads: which of
    its heads, [first, stop); None is all (`kv.source`).
    first: tokens that lie in a further format, and are read there; in `format` they are stored as all others.
    """

    layer: int
    heads: int
    k_dim: int
    v_dim: int
    format: KVFormat
    retention: Retention = field(default_factory=Full)
    source: int | None = None
    source_heads: tuple[int, int] | None = None
    first: First | None = None

    @property
    def beginning(self) -> LayerKV | None:
        """What its first tokens are stored as, where that is otherwise than the rest."""
        first, rule = self.first, self.retention
        if first is None:
            return None
        return replace(self, format=first.format, retention=Beginning(rule, first.tokens), first=None)


@dataclass(frozen=True)
class KVCacheSpec:
    """The geometry of a whole cache. Two caches with the same fingerprint can read each other's rows.

    layers: those that keep something of every token. tail_dtype: of what a seat keeps of open blocks, for formats that
    encode whole blocks. states: layers that keep a running state; a layer may be in both. compactor: what sequences
    give up of their tokens, None nothing. It changes no row that can be found, so it is not in the fingerprint.

        seat        | tails of open blocks | states |
        checkpoint                         | states |      (`kv.marks`)
    """

    layers: tuple[LayerKV, ...]
    block_size: int
    tail_dtype: str = "bfloat16"
    states: tuple[LayerState, ...] = ()
    compactor: Compactor | None = None

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
            where = f"layer {layer.layer}"
            if min(layer.heads, layer.k_dim, layer.v_dim) < 1:
                reasons.append(
                    f"{where}: heads {layer.heads}, k_dim {layer.k_dim} and v_dim {layer.v_dim} must be positive"
                )
            reasons += [f"{where}: {problem}" for problem in layer.retention.problems()]
            if layer.source is None:
                stored = (one for one in (layer.format, layer.first) if one is not None)
                reasons += [f"{where}: {problem}" for one in stored for problem in one.problems(layer, self.block_size)]
                continue
            source = own.get(layer.source)
            if source is None or layer.source >= layer.layer:
                reasons.append(f"{where}: source {layer.source} is not an earlier layer with storage of its own")
            else:
                reasons += [f"{where}: {problem}" for problem in reasons_against_reading(layer, source)]
        return reasons if self.compactor is None else reasons + reasons_against(self.compactor, self)

    @cached_property
    def groups(self) -> tuple[KVGroup, ...]:
        return group_layers([one for one in self.layers if one.source is None], self.planes, self.layer_bytes)

    @property
    def stores(self) -> tuple[LayerKV, ...]:
        """All that layers store, their first tokens apart where they are stored otherwise."""
        return tuple(one for group in self.groups for one in group.layers)

    @property
    def num_growing(self) -> int:  # groups that take a block for each further block of tokens
        return sum(not group.is_beginning for group in self.groups)

    @cached_property
    def group_of(self) -> dict[int, int]:
        """Layer index -> group index, for layers with a source as well; of first tokens where it has no other."""
        return self.first_group_of | numbers_of(self.layers, [one for one in self.groups if not one.is_beginning])

    @cached_property
    def first_group_of(self) -> dict[int, int]:  # the same of first tokens, where layers store them otherwise
        return numbers_of(self.layers, [group for group in self.groups if group.is_beginning])

    def storage(self, layer: int) -> LayerKV:
        """The layer whose storage, format and geometry `layer` reads: itself, or its source."""
        found = next(one for one in self.layers if one.layer == layer)
        return found if found.source is None else self.storage(found.source)

    @cached_property
    def cells(self) -> int:
        """Cells of a row, one of each key head of each layer (`kv.cells`); 0 where a layer lies in it as a whole."""
        return sum(layer.heads for layer in self.layers) if self.compactor and self.compactor.unequal else 0

    @cached_property
    def cell_of(self) -> Mapping[int, int]:
        """Layer index -> its first cell in a row."""
        heads = [layer.heads for layer in self.layers]
        return {layer.layer: sum(heads[:i]) for i, layer in enumerate(self.layers)}

    def planes(self, layer: LayerKV) -> tuple[Plane, ...]:
        """Of one layer in one block, or of one of its cells."""
        layer = replace(layer, heads=1) if self.cells else layer
        return layer.format.planes(layer, self.block_size)

    def layer_bytes(self, layer: LayerKV) -> int:
        """Bytes of one layer in one block, alignment included."""
        return (layer.heads if self.cells else 1) * sum(align(plane.nbytes) for plane in self.planes(layer))

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one row: the largest group's."""
        return max(group.used_bytes for group in self.groups)

    @property
    def whole_block(self) -> bool:
        """Whether some layer encodes whole blocks, so that sequences need seats and are cut at borders of blocks."""
        return bool(self.tail_offsets)

    def tail_planes(self, layer: LayerKV) -> tuple[Plane, ...]:
        """What a seat keeps of a layer: the open block's K and V, as they were computed."""
        if layer.source is not None or not layer.format.whole_block:
            return ()
        sides = (("k", layer.k_dim), ("v", layer.v_dim))
        return tuple(Plane(side, self.tail_dtype, (self.block_size, layer.heads, dim)) for side, dim in sides)

    @cached_property
    def tail_offsets(self) -> Mapping[int, Mapping[str, int]]:
        """Layer index -> plane name -> byte position in a seat, for layers that encode whole blocks."""
        return places((layer.layer, plane) for layer in self.layers for plane in self.tail_planes(layer))

    @cached_property
    def tail_bytes(self) -> int:
        return sum(align(plane.nbytes) for layer in self.layers for plane in self.tail_planes(layer))

    @cached_property
    def state_offsets(self) -> Mapping[int, Mapping[str, int]]:
        """Layer index -> plane name -> byte position in a checkpoint, for layers with a state."""
        return places((state.layer, plane) for state in self.states for plane in state.planes)

    @cached_property
    def mark_bytes(self) -> int:
        """Bytes of one checkpoint: the states of all layers."""
        return sum(state.nbytes for state in self.states)

    @property
    def mark_rows(self) -> int:
        """Rows of blocks that a checkpoint takes."""
        return -(-self.mark_bytes // self.block_bytes)

    @property
    def seat_bytes(self) -> int:
        """Bytes of one seat: what each running sequence takes beside its blocks."""
        return self.tail_bytes + self.mark_bytes

    def blocks_for(self, num_tokens: int, chunk: int) -> int:
        """Most blocks that a sequence of `num_tokens` ever holds, all groups together, with steps of up to `chunk`."""
        if self.compactor is not None:
            num_tokens = self.compactor.most(num_tokens)
        return sum(peak_blocks(group.retention, num_tokens, chunk, self.block_size) for group in self.groups)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that change with anything that changes the meaning of a row.

        Made of the ids of codecs and retentions, not of classes and fields; what is as usual is left out.
        """
        states = [[state.layer, state.kind, *map(_shape_of, state.planes)] for state in self.states]
        cut = ["cells/1"] if self.cells else []
        text = json.dumps([self.block_size, *map(_describe, self.layers), *([states] if states else []), *cut])
        return hashlib.sha256(text.encode()).digest()


def _describe(layer: LayerKV) -> list[Any]:
    numbers = [layer.layer, layer.heads, layer.k_dim, layer.v_dim]
    retention = [] if layer.retention == Full() else [layer.retention.id]
    first = [] if layer.first is None else [f"first={layer.first.tokens}:{layer.first.format.id}"]
    source = layer.source if layer.source_heads is None else [layer.source, *layer.source_heads]
    return [*numbers, layer.format.id if layer.source is None else source, *retention, *first]


def _shape_of(plane: Plane) -> list[Any]:
    return [plane.name, plane.dtype, *plane.shape]
