"""The contract of attention: write this step's K/V into the cache, then read what each query may see.

Tokens of a step are flat: T tokens of S sequences, sequence s owning rows query_start[s] .. query_start[s + 1].

    tokens   | seq 0: 5 new | seq 1: 1 new | seq 2: 512 new |
    start       120            4093           1024             position of the first new token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.kv.retention import Retention
from kvtrove.kv.spec import First, KVFormat


@dataclass(frozen=True)
class Reach:
    """Which keys of its retention a query reads here: those at [begin, limit), with `older` before its own block."""

    begin: int = 0
    limit: int | None = None
    older: bool = False

    @property
    def is_part(self) -> bool:
        """Whether a query's other keys are read elsewhere, so that it may read nothing here."""
        return self != EVERYTHING


EVERYTHING = Reach()


@dataclass(frozen=True)
class AttentionLayer:
    """What never changes about one layer. `view`: plane name -> [num_blocks, *plane.shape] of the storage it reads.

    kv_heads, k_dim, v_dim, format: of that storage.
    storage: the layer that it belongs to; is_shared: whether others read it too. source_heads: its heads that `view`
    and `tails` are of, [first, stop); None for all.
    sink_logits: float32 [num_heads], a score that each query of a head has beside those of its keys, of value zero.
    tails: "k" and "v" -> [num_seats, block_size, kv_heads, dim] of open blocks, where the format encodes whole ones.
    first: the layer for its first tokens, where these are stored otherwise, in a format, group and view of their own.
    cells: into which a row is cut, 0 where layers lie in it as a whole (`kv.cells`); then `view` is that of all cells
    of the arena, and `cell` the first of this layer in a row.
    """

    index: int
    num_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    retention: Retention
    format: KVFormat
    group: int
    view: Mapping[str, Tensor]
    block_size: int
    softcap: float | None = None
    sink_logits: Tensor | None = None
    storage: int = 0
    is_shared: bool = False
    source_heads: tuple[int, int] | None = None
    tails: Mapping[str, Tensor] = field(default_factory=dict)
    cells: int = 0
    cell: int = 0
    reach: Reach = EVERYTHING
    first: AttentionLayer | None = None

    @cached_property
    def reads(self) -> Reach:
        """What queries read in this storage: `reach`, without their own blocks where the format encodes whole ones."""
        return replace(self.reach, older=self.reach.older or self.format.whole_block)

    def storing_first(self, first: First, group: int, view: Mapping[str, Tensor]) -> AttentionLayer:
        """The same layer with its first tokens in a storage of their own."""
        older = self.format.whole_block
        beginning = replace(
            self,
            format=first.format,
            group=group,
            view=view,
            tails={},
            sink_logits=None if older else self.sink_logits,
            reach=Reach(limit=first.tokens, older=older),
        )
        return replace(self, reach=Reach(begin=first.tokens), first=beginning)

    @property
    def parts(self) -> tuple[AttentionLayer, ...]:
        """Storages that queries read one after the other."""
        return (self,) if self.first is None else (self, self.first)


@dataclass(frozen=True)
class GroupTables:
    """Where a group's tokens lie.

    slots: int64 [T] of the new tokens. block_table: int32 [S, max_blocks], -1 where a block is not held.
    """

    slots: Tensor
    block_table: Tensor


@dataclass(frozen=True)
class AttentionBatch:
    """One step. query_start: S + 1 row numbers. start: S places in the
    tables, which are positions too where a sequence has all its tokens. Plain lists: planning waits for no device.

    packed: rows with which each sequence begins that are packed (`kv.cells`), and counts, int32 [cells], what their
    first one says; None where there are none.
    seats: of each sequence. completed: (sequence, block index) of every block that this step fills; formats that encode
    whole blocks seal these before anybody reads.
    """

    query_start: list[int]
    start: list[int]
    groups: tuple[GroupTables, ...]
    seats: list[int] = field(default_factory=list)
    completed: list[tuple[int, int]] = field(default_factory=list)
    packed: list[int] = field(default_factory=list)
    counts: list[NDArray[np.int32] | None] = field(default_factory=list)


def first_rows(batch: AttentionBatch, reach: Reach) -> list[int]:
    """Rows of the tokens that lie before the limit of `reach`."""
    assert reach.limit is not None, "a storage of first tokens has one"
    return [
        row
        for begin, stop, start in zip(batch.query_start, batch.query_start[1:], batch.start, strict=False)
        for row in range(begin, begin + max(0, min(stop - begin, reach.limit - start)))
    ]


class Rotation(Protocol):
    """The rotary embedding of a step (arXiv 2104.09864). cos, sin: [T, 1, rotary_dim / 2], in the dtype of q and k."""

    @property
    def cos(self) -> Tensor: ...

    @property
    def sin(self) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, heads, head_dim], rotated; x itself stays as it is."""
        ...

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of other positions, int64 [T]: of keys that are stored before theirs."""
        ...


class AttentionBackend(Protocol):
    """reference, cpu kernels: one object for all layers that it serves, asked once a step to plan."""

    name: str

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        """Why this backend cannot serve the layer; empty when it can."""
        ...

    def plan(self, batch: AttentionBatch) -> Any:
        """What all layers of a step share, computed once; handed back to `run`."""
        ...

    def run(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: Any,
        rotate: Rotation | None = None,
    ) -> Tensor:
        """Store k, v [T, kv_heads, k_dim or v_dim] (None: the layer reads another's storage), then attend.

        q: [T, num_heads, k_dim]; the result is [T, num_heads, v_dim] of its dtype. rotate: turns q and k first, and q
        may be turned in place; None: they come rotated. Unused slots may hold anything, NaN included: it never leaks.
        """
        ...


@runtime_checkable
class StoringBackend(AttentionBackend, Protocol):
    """One that can store without attending: for layers that only some of a step's tokens go on through."""

    def store(self, k: Tensor, v: Tensor, layer: AttentionLayer, plan: Any, rotate: Rotation | None = None) -> None:
        """Store k, v as `run` does. Not for formats that encode whole blocks or keep keys before their rotation."""
        ...
