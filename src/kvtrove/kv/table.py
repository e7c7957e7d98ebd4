"""What one sequence holds: a block table per group, its key chain, how far it has been computed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.block import Block, Use
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.groups import KVGroup
from kvtrove.kv.mark_rules import Kind
from kvtrove.kv.retention import Retention, live_blocks, num_stored
from kvtrove.kv.seats import NONE

if TYPE_CHECKING:
    from kvtrove.kv.marks import Mark

HOLE = -1  # the id in a table where no block is held
NEVER = 1 << 62


class BlockTable:
    """The blocks of one group in token order, None where a block left the window or was never needed.

    The ids live twice: in the blocks, and in an int32 buffer that grows by doubling, so that handing a table to the
    runner costs a slice however long the context is.

        blocks | None  None  b7  b2  b9 |
        ids    |  -1    -1    7   2   9 |  spare ...
    """

    __slots__ = ("_ids", "blocks", "num_held")

    def __init__(self) -> None:
        self.blocks: list[Block | None] = []
        self.num_held = 0
        self._ids = np.full(8, HOLE, np.int32)

    @property
    def ids(self) -> NDArray[np.int32]:
        """int32 [len(blocks)], a view that later changes of the table show in."""
        return self._ids[: len(self.blocks)]

    def extend(self, blocks: Sequence[Block | None]) -> None:
        start, stop = len(self.blocks), len(self.blocks) + len(blocks)
        if stop > len(self._ids):
            grown = np.full(max(stop, 2 * len(self._ids)), HOLE, np.int32)
            grown[:start] = self._ids[:start]
            self._ids = grown
        self.blocks.extend(blocks)
        self.num_held += len(blocks) - blocks.count(None)
        self._ids[start:stop] = [HOLE if block is None else block.id for block in blocks]

    def cut(self, length: int) -> list[Block | None]:
        """Shorten to `length` entries; returns the others."""
        tail = self.blocks[length:]
        del self.blocks[length:]
        self.num_held -= len(tail) - tail.count(None)
        return tail

    def release_dead(self, retention: Retention, n: int, block_size: int) -> Iterator[tuple[int, Block]]:
        """Empty the entries of sealed blocks without a live token at length n; yields (index, block).

        What dies borders on what lives, so each run of dead blocks is walked from its upper end to the first hole.
        """
        for run in dead_runs(retention, n, block_size):
            for i in reversed(run):
                block = self.blocks[i]
                if block is None:
                    break
                self.blocks[i] = None
                self._ids[i] = HOLE
                self.num_held -= 1
                yield i, block


class SequenceKV:
    """The cache state of one sequence: an opaque handle to everyone but the manager.

        tokens   | block 0     | block 1     | block 2     | block 3     |
                 | SEALED: computed, immutable | OPEN        | OPEN        |
                 0                                 ^ num_computed         ^ capacity

    num_computed: tokens whose K/V were computed. capacity: tokens that the tables have room for, -1 once freed.
    dropped: tokens that were computed and given up since (`kv.compaction`): token n lies at place n - dropped of the
    tables from then on, and its position is its place + shift. packed: rows with which they begin then, where heads
    keep different numbers of tokens (`kv.cells`). compacts_at: number of computed tokens at which some are
    to be given up next. memory: of its compactor, about the tokens that it has kept. moves_at: the number at which
    tokens are taken over that moved (`kv.moved`).
    seat, spare: what it has beside its blocks (`kv.seats`); none is taken where neither formats nor states need one.
    found: tokens whose blocks its match found, states or not. due: lengths at which its states are to be kept, and why,
    ascending; from `follows` tokens on, that is every border of a block. made: the last checkpoint of each kind that it
    made (`kv.marks`). behind: those that lay on its way when it began, the last one first.
    next_event: the number of computed tokens at which a block is to be sealed or leaves a window; before it, commit
    only counts. 0 when unknown: the next commit looks.
    """

    __slots__ = (
        *("_ids", "_most", "behind", "capacity", "chain", "compacts_at", "dropped", "due", "follows", "found", "made"),
        *("memory", "moves_at", "next_event", "num_computed", "packed", "salt", "seat", "shift", "spare", "tables"),
        "use",
    )

    def __init__(self, most: Sequence[int], chain: KeyChain, salt: bytes) -> None:
        """most: tokens of which each group holds blocks, from the beginning on."""
        self.num_computed = 0
        self.dropped = self.shift = self.packed = 0
        self.compacts_at = self.moves_at = NEVER
        self.memory: dict[int, Any] | None = None
        self.capacity = 0
        self.next_event = 0
        self.salt = salt
        self.seat = self.spare = NONE
        self.found = 0
        self.due: list[tuple[int, Kind]] = []
        self.follows = NEVER
        self.made: dict[Kind, Mark] = {}
        self.behind: list[Mark] = []
        self.chain = chain
        self.use = Use()
        self.tables = tuple(BlockTable() for _ in most)
        self._most = most
        self._ids: tuple[NDArray[np.int32], ...] | None = None

    def inherit(self, parent: SequenceKV) -> None:
        """The place of a fork in its sequence."""
        self.num_computed, self.dropped, self.shift = parent.num_computed, parent.dropped, parent.shift
        self.compacts_at, self.use, self.follows = parent.compacts_at, parent.use, parent.follows
        self.packed, self.memory = parent.packed, parent.memory

    def begin(self, chain: KeyChain, compactor: Compactor | None = None) -> None:
        """Be the beginning of a sequence with this chain; compactor: what has left the tokens that stand before it."""
        self.chain, self.dropped, self.num_computed = chain, chain.dropped, chain.dropped
        self.shift = 0 if compactor is None or compactor.contiguous else chain.dropped
        self.packed = chain.kept // chain.block_size if compactor is not None and compactor.unequal else 0

    @property
    def is_freed(self) -> bool:
        return self.capacity < 0

    @property
    def num_held(self) -> int:
        """Tokens in the tables."""
        return self.num_computed - self.dropped

    @property
    def num_blocks(self) -> int:
        """Blocks held over all groups."""
        return sum(table.num_held for table in self.tables)

    def block_ids(self) -> tuple[NDArray[np.int32], ...]:
        """Per group the int32 ids of the table, -1 where no block is held.

        Views: blocks that leave a window later become -1 in them, blocks allocated later are not in them.
        """
        if self._ids is None:
            self._ids = tuple(table.ids for table in self.tables)
        return self._ids

    def num_missing(self, stop: int, first: int | None = None) -> int:
        """Blocks that all tables together lack to reach `stop` entries, or between `first` and there."""
        return sum(map(sum, self._places(first, stop)))

    def fill(self, blocks: Sequence[Block], stop: int, first: int | None = None) -> None:
        """Append `num_missing` blocks, groups taking turns at each position."""
        rows, rest = self._places(first, stop), iter(blocks)
        columns = [[next(rest) if held else None for held in column] for column in zip(*rows, strict=True)]
        self.extend(zip(*columns, strict=True) if columns else [()] * len(self.tables))

    def _places(self, first: int | None, stop: int) -> list[list[bool]]:
        size = self.chain.block_size
        starts = [i * size for i in range(len(self.tables[0].blocks) if first is None else first, stop)]
        return [[start < most for start in starts] for most in self._most]

    def extend(self, rows: Iterable[Sequence[Block | None]]) -> None:
        """Append one row of blocks per group, all of the same length."""
        for table, row in zip(self.tables, rows, strict=True):
            table.extend(row)
        self._resized()

    def cut(self, num_blocks: int) -> list[Block]:
        """Shorten every table to `num_blocks`; returns what was held beyond, the end of the sequence first.

        Groups take turns at each position: what serves the same prefix leaves the cache together.
        """
        columns = zip(*(reversed(table.cut(num_blocks)) for table in self.tables), strict=True)
        dropped = [block for column in columns for block in column if block is not None]
        self._resized()
        return dropped

    def sealed_blocks(self) -> list[Block]:
        """Every sealed block held, in the order of `cut`."""
        columns = zip(*(reversed(table.blocks) for table in self.tables), strict=True)
        return [block for column in columns for block in column if block is not None and block.sealed]

    def _resized(self) -> None:
        self.capacity = len(self.tables[0].blocks) * self.chain.block_size
        self._ids = None


def dead_runs(retention: Retention, n: int, block_size: int) -> Iterator[range]:
    """Runs of full blocks below n that were held, ascending, none of whose tokens is live at length n."""
    full, at = min(n // block_size, -(-num_stored(retention, n) // block_size)), 0
    for span in retention.live(n):
        first = min(span.start // block_size, full)
        if first > at:
            yield range(at, first)
        at = max(at, -(-span.stop // block_size))
    if full > at:
        yield range(at, full)


def first_lost(blocks: Sequence[Block | None], retention: Retention, n: int, block_size: int) -> int | None:
    """Index of the first block that a query at position n reads and the table has given up."""
    return next((i for i in live_blocks(retention, n, block_size) if blocks[i] is None), None)


def next_event(retentions: Iterable[Retention], n: int, block_size: int) -> int:
    """Smallest length after n at which a block becomes full or a full one dies."""
    event = (n // block_size + 1) * block_size
    for retention in retentions:
        dead = _num_dead(retention, block_size, n)
        num_dead = partial(_num_dead, retention, block_size)
        event = n + 1 + bisect_right(range(n + 1, event), dead, key=num_dead)
    return event


def _num_dead(retention: Retention, block_size: int, n: int) -> int:
    return sum(map(len, dead_runs(retention, n, block_size)))


def left_behind(kv: SequenceKV, windows: Iterable[KVGroup], n: int, block_size: int) -> list[Block]:
    """Blocks without a live token at length n, taken out of the tables of `kv`.

    Oldest first over all groups: what stays longest in the cache is the run that the live window continues.
    """
    dead = [entry for group in windows for entry in kv.tables[group.index].release_dead(group.retention, n, block_size)]
    return [block for _, block in sorted(dead, key=itemgetter(0))]
