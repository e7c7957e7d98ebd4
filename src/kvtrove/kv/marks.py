"""Checkpoints of running states: which of them are kept, found under the key of the prefix whose state they hold.

A state cannot go back, so a prefix is reused only where its state was kept: a hit over layers with states needs blocks
*and* a mark, and what lies between the last mark and the end of the blocks is computed again.

A mark is cut into rows, which are blocks of groups of their own, behind those of the layers. So one memory serves
blocks and marks, as the load asks for, and tiers and files carry both alike; the rows of a mark leave together.

Who leaves first: a conversation goes on from its last mark, so the earlier ones become spare and leave before all
blocks: they cost nothing but memory that nobody else wants. A mark stays that somebody resumes at although the
conversation has gone on: a branch point, such as the end of a system prompt. Of the places where a conversation may go
on (the end of its prompt, of its answer, of a message) those are kept that were resumed at lately; others are spare
from the beginning, as are marks that save fewer tokens than they cost.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvtrove.kv.block import Block
from kvtrove.kv.books import Books
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.mark_rules import Kind
from kvtrove.kv.table import SequenceKV
from kvtrove.kv.tiers.store import group_key

MOST_GONE = 8192  # marks remembered after they left
SELDOM = 8
"""A place where fewer than one in so many resume, of those at the most frequent one, is not worth a mark."""
LEAST_WORTH = 0.5
"""Rows of keys and values that a mark saves, at least, for each row that it takes."""
RECENT = 64


@dataclass(slots=True, eq=False)
class Mark:
    """A checkpoint after `place` blocks. blocks: its rows. tokens: of the last block before it, compared on every hit.

    kind: why it was made, None of one that came from elsewhere. passed: its conversation has gone on to a later one.
    branched: somebody resumed at it although it had.
    """

    blocks: tuple[Block, ...]
    key: bytes
    tokens: bytes
    place: int
    kind: Kind | None = None
    passed: bool = False
    branched: bool = False

    @property
    def is_spare(self) -> bool:
        return self.blocks[0].spare


@dataclass(frozen=True, slots=True)
class Gone:
    """A mark that was evicted or for which there was no room; as `Mark`."""

    time: float
    kind: Kind | None
    passed: bool
    branched: bool = False


@dataclass(frozen=True, slots=True)
class MarkStats:
    """used: checkpoints that are there, in `blocks` of the pool. saved, loaded, evicted: since the start."""

    used: int
    blocks: int
    saved: int
    loaded: int
    evicted: int


class Marks:
    """Of one cache; in one without states there are none."""

    def __init__(self, books: Books, *, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = enabled
        self.books = books
        self.num_rows, self.first_group = books.spec.mark_rows, len(books.spec.groups)
        self._marks: dict[bytes, Mark] = {}
        self._gone: OrderedDict[bytes, Gone] = OrderedDict()
        self._resumed: Counter[Kind] = Counter()
        self._clock = clock
        self._saved = self._loaded = self._evicted = 0

    def __iter__(self) -> Iterator[Mark]:
        return iter(self._marks.values())

    # ---- looking up ----

    def at(self, chain: KeyChain, num_blocks: int) -> Mark | None:
        """The state of the chain's first blocks."""
        mark = self._marks.get(chain.keys[num_blocks - 1]) if num_blocks else None
        return mark if mark is not None and mark.tokens == chain.tokens[num_blocks - 1] else None

    def before(self, chain: KeyChain, num_blocks: int) -> int:
        """The most leading blocks of the chain, at most `num_blocks`, whose state is there; that of none always is."""
        return next((n for n in range(num_blocks, 0, -1) if self.at(chain, n) is not None), 0)

    def witness(self, chain: KeyChain, num_blocks: int) -> bytes:
        """The key, in a tier, of the row of such a checkpoint that is saved last."""
        return group_key(chain.keys[num_blocks - 1], self.first_group + self.num_rows - 1)

    def along(self, chain: KeyChain, num_blocks: int) -> list[Mark]:
        """The marks of the chain's first blocks, the last one first."""
        found = [self.at(chain, n) for n in range(min(num_blocks, len(chain.keys)), 0, -1)] if self._marks else []
        return [mark for mark in found if mark is not None]

    def of(self, block: Block) -> Mark | None:
        """The mark that a block is a row of."""
        return self._marks.get(block.key) if block.group >= self.first_group else None

    def age(self, chain: KeyChain, first: int, last: int) -> float | None:
        """Seconds since the state after first + 1 .. last blocks was evicted, the most that was; None if none was."""
        times = [gone.time for key in chain.keys[first:last] if (gone := self._gone.get(key)) is not None]
        return self._clock() - max(times) if times else None

    # ---- a sequence resumes, and makes its own ----

    def use(self, mark: Mark) -> None:
        """A sequence resumes there."""
        self._loaded += 1
        if not mark.branched:
            self._count(mark.kind)
        if mark.passed:
            mark.branched = True
            self._set_spare(mark, False)
        self.books.pool.freshen(mark.blocks)

    def missed(self, chain: KeyChain, num_blocks: int) -> Kind:
        """A sequence would have resumed after these blocks, whose state is not there: why it is to be kept now."""
        gone = self._gone.get(chain.keys[num_blocks - 1])
        if gone is None:
            return "branches"
        if not gone.branched:
            self._count(gone.kind)
        return "branches" if gone.passed or gone.branched or gone.kind is None else gone.kind

    def save(self, kv: SequenceKV, num_blocks: int, kind: Kind) -> Mark | None:
        """Rows for the state of the sequence's first blocks; None when it is there already, or not worth its room."""
        chain, before, mark = kv.chain, kv.made.get(kind), self.at(kv.chain, num_blocks)
        if before is not None and kind == "answer" and before is not mark and not self._stays(before):
            self.drop(before)  # nobody resumes in the midst of an answer
        if mark is not None:
            kv.made[kind] = mark
            return None
        gone = self._gone.get(chain.keys[num_blocks - 1])
        branched = kind == "branches" or (gone is not None and gone.branched)
        chosen = branched or (self._is_frequent(kind) and self._is_worth(kv, num_blocks))
        pool = self.books.pool
        if self.num_rows > (pool.num_available if chosen else pool.num_free + len(pool.spare)):
            self._remember(chain.keys[num_blocks - 1], Gone(self._clock(), kind, passed=not chosen))
            return None
        blocks = pool.allocate(self.num_rows)
        assert blocks is not None, "they were counted before"
        for row, block in enumerate(blocks):
            seal(block, chain, (self.first_group + row, num_blocks - 1))
            block.use, block.spare = kv.use, not chosen
        mark = self._publish(chain, num_blocks, blocks)
        mark.kind, mark.branched = kind, branched
        pool.release(blocks)
        self._saved += 1
        if chosen:
            self._pass(kv, mark)
        kv.made[kind] = mark
        return mark

    def ended(self, kv: SequenceKV) -> Mark | None:
        """The sequence lets go of its blocks; returns the mark that the conversation is expected to go on from."""
        own = sorted((mark for mark in kv.made.values() if self._is_there(mark)), key=lambda mark: mark.place)
        if own and all(mark.is_spare for mark in own) and self._is_worth(kv, own[-1].place):
            self._set_spare(own[-1], False)  # no answer was long enough, for example
            self._pass(kv, own[-1])
        return next((mark for mark in reversed(own) if not mark.is_spare), None)

    def keep(self, mark: Mark, priority: int, until: float) -> None:
        """As `BlockPool.keep`. Until then it is no spare one, though its conversation goes on."""
        self._set_spare(mark, False)
        self.books.pool.keep(mark.blocks, priority, until)

    def adopt(self, chain: KeyChain, num_blocks: int, blocks: Sequence[Block]) -> None:
        """Let the state of the chain's first blocks be found in these sealed blocks, unless it is there already."""
        if chain.keys[num_blocks - 1] not in self._marks:
            self._publish(chain, num_blocks, blocks)

    # ---- marks leave ----

    def evict(self, mark: Mark, victim: Block) -> None:
        """One of its rows has to make room: the others are free."""
        passed = mark.passed or (mark.is_spare and not mark.branched)
        self._remember(mark.key, Gone(self._clock(), mark.kind, passed, mark.branched))
        self._evicted += 1
        self._forget(mark, victim)

    def drop(self, mark: Mark) -> None:
        """Let nobody find it any more."""
        if self._is_there(mark):
            self._forget(mark, None)

    def drop_keys(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if key in self._marks:
                self.drop(self._marks[key])

    def reset(self) -> None:
        """The books begin again: pool and index are gone."""
        self._marks.clear()

    def stats(self) -> MarkStats:
        used = len(self._marks)
        return MarkStats(used, used * self.num_rows, self._saved, self._loaded, self._evicted)

    def violations(self) -> Iterator[str]:
        """I11, for `invariants`."""
        groups = [*range(self.first_group, self.first_group + self.num_rows)]
        for key, mark in self._marks.items():
            found = [block.group for block in mark.blocks if block.key == key and self.books.index.holds(block)]
            if found != groups or len({block.spare for block in mark.blocks}) != 1:
                yield f"I11: of the checkpoint after {mark.place} blocks, rows {found} are found, not {groups}"
        rows = sum(block.published and block.group >= self.first_group for block in self.books.pool.blocks)
        if rows != len(self._marks) * self.num_rows:
            yield f"I11: {rows} rows of {len(self._marks)} checkpoints are found"

    # ---- the parts ----

    def _publish(self, chain: KeyChain, num_blocks: int, blocks: Sequence[Block]) -> Mark:
        for block in blocks:
            self.books.index.publish(block)
        mark = Mark(tuple(blocks), chain.keys[num_blocks - 1], chain.tokens[num_blocks - 1], num_blocks)
        self._marks[mark.key] = mark
        return mark

    def _forget(self, mark: Mark, victim: Block | None) -> None:
        """victim: the row that its pool is about to hand out."""
        del self._marks[mark.key]
        for block in mark.blocks:
            self.books.index.forget(block)
            block.published = False
            if block is not victim and not block.ref_count:
                self.books.pool.discard(block)

    def _pass(self, kv: SequenceKV, mark: Mark) -> None:
        """The conversation goes on from `mark`: what it left behind is spare."""
        for earlier in kv.behind:
            earlier.passed = True
            self._set_spare(earlier, not self._stays(earlier))
        for kind, other in kv.made.items():
            if other.place < mark.place:
                other.passed = True
                if kind == mark.kind:
                    self._set_spare(other, not self._stays(other))

    def _set_spare(self, mark: Mark, spare: bool) -> None:
        if mark.is_spare != spare and self._is_there(mark):
            self.books.pool.set_spare(mark.blocks, spare)

    def _stays(self, mark: Mark) -> bool:
        """Whether it is of use although its conversation goes on elsewhere."""
        return mark.branched or mark.blocks[0].keep_until > self._clock()

    def _is_there(self, mark: Mark) -> bool:
        return self._marks.get(mark.key) is mark

    def _is_frequent(self, kind: Kind) -> bool:
        return SELDOM * self._resumed[kind] >= max(self._resumed.values(), default=0)

    def _is_worth(self, kv: SequenceKV, num_blocks: int) -> bool:
        root = next((mark.place for mark in kv.behind if mark.branched), 0)
        return (num_blocks - root) * self.first_group >= LEAST_WORTH * self.num_rows

    def _count(self, kind: Kind | None) -> None:
        if kind is not None and kind != "branches":
            self._resumed[kind] += 1
            if self._resumed[kind] > RECENT:
                self._resumed = Counter({kind: times // 2 for kind, times in self._resumed.items()})

    def _remember(self, key: bytes, gone: Gone) -> None:
        self._gone[key] = gone
        self._gone.move_to_end(key)
        if len(self._gone) > MOST_GONE:
            self._gone.popitem(last=False)


@dataclass(frozen=True, slots=True)
class StateSearch:
    """Layers with running states: they resume where a checkpoint is, and where nothing was computed.

    stored: keys of rows that a tier has, as `group_key` makes them. The last row of a checkpoint stands for all of it.
    """

    marks: Marks
    chain: KeyChain
    stored: Container[bytes] = frozenset()

    def shrink(self, n: int) -> int:
        return next((m for m in range(n, 0, -1) if self._has(m)), 0)

    def _has(self, n: int) -> bool:
        return self.marks.at(self.chain, n) is not None or self.marks.witness(self.chain, n) in self.stored


def seal(block: Block, chain: KeyChain, place: tuple[int, int]) -> None:
    """Block `place` (group, index) of the chain."""
    block.group, block.index = place
    block.sealed = True
    block.key, block.parent, block.tokens = chain.place(block.index)
