"""What the books ask of the bytes: operations on rows, executed one after the other before a step writes anything.

The order is part of the contract: between two steps a row may be freed, handed out again and be the target of a later
operation, and a target may be the source of an operation behind it. So whoever reads a row queues that before whoever
reuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtrove.kv.compaction.compactor import Compactor


@dataclass(frozen=True, slots=True)
class Copy:
    """Row `source` over row `target`."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Gather:
    """What `compactor` keeps of the first `num_tokens` tokens in the rows `sources` into the rows `targets`, one tuple
    of each a group. Everything is read before anything is written: a target may be a source.

    observed: queries of the last tokens, as the runner reported them. scores: of each layer, found beforehand, or
    what the last compaction remembered. memory: gets what this one remembers. shift: of the sequence, until now.
    """

    sources: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    num_tokens: int
    compactor: Compactor
    observed: Sequence[Any] = ()
    scores: Mapping[int, Any] | None = None
    memory: dict[int, Any] | None = None
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """Show `look` the keys that each layer has at these places of the rows `sources`, one tuple a group, and if
    `values` says so its values.
    """

    sources: tuple[tuple[int, ...], ...]
    places: Sequence[int]
    look: Callable[[int, Any], None]
    observed: Sequence[Any] = ()
    values: bool = False


@dataclass(frozen=True, slots=True)
class Shift:
    """num_tokens tokens in the rows `sources`, from token start[0] of the first one on, into the rows `targets`, from
    token start[1] on; one tuple of rows a group. Keys are turned by so many positions.
    """

    sources: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    start: tuple[int, int]
    num_tokens: int
    by: int


@dataclass(frozen=True, slots=True)
class CopySeat:
    """Seat `source` over seat `target`."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class SaveMark:
    """The states of seat `seat` over the rows of a checkpoint."""

    seat: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadMark:
    """The rows of a checkpoint over the states of seat `seat`."""

    rows: tuple[int, ...]
    seat: int


@dataclass(frozen=True, slots=True)
class Spill:
    """Put row `source` under `key` into the tiers."""

    source: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Fill:
    """Write `content`, the bytes of a whole row that came from a tier, over row `target`."""

    target: int
    content: memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class FillSeat:
    """Write `content`, the bytes of a whole seat that was kept, over seat `target`."""

    target: int
    content: memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Park:
    """Copy row `source`, or with `seat` that seat, to `target`, memory of the sequence that loses it."""

    source: int
    target: memoryview = field(repr=False)
    seat: bool = False


RowOp = Copy | Gather | Look | Shift | CopySeat | SaveMark | LoadMark | Spill | Fill | FillSeat | Park
