"""Running states of sequences, as the books see them: when they are kept in a checkpoint, loaded, or taken back."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Protocol

from kvtrove.kv.block import Block
from kvtrove.kv.books import Books
from kvtrove.kv.loads import Transfers
from kvtrove.kv.mark_rules import MarkRules
from kvtrove.kv.marks import Mark, Marks
from kvtrove.kv.row_queue import RowQueue
from kvtrove.kv.rows import CopySeat, LoadMark
from kvtrove.kv.seats import NONE, Seats
from kvtrove.kv.table import NEVER, SequenceKV


class StateBooks(Books, Protocol):
    """With seats, and what is asked of the bytes."""

    @property
    def seats(self) -> Seats: ...
    @property
    def marks(self) -> Marks: ...
    @property
    def rows(self) -> RowQueue: ...
    @property
    def transfers(self) -> Transfers | None: ...


class States:
    """Of one cache; without layers that have states, nothing happens here."""

    def __init__(self, books: StateBooks, rules: MarkRules | None) -> None:
        self.there = bool(books.spec.states)
        self.books, self._rules, self._size = books, rules or MarkRules(), books.spec.block_size

    # ---- checkpoints ----

    def plan(self, kv: SequenceKV, num_tokens: int, borders: Iterable[int] = ()) -> None:
        """Where the states of a sequence that begins to compute its prompt of `num_tokens` will be kept.

        borders: lengths at which its messages end.
        """
        marks, size = self.books.marks, self._size
        if not marks.enabled:
            return
        kv.behind = marks.along(kv.chain, kv.num_computed // size)
        branch = kv.found if kv.found > kv.num_computed and not self._was_evicted(kv, kv.found) else 0
        due = self._rules.due(num_tokens, borders, branch, size)
        if branch in due:
            due[branch] = marks.missed(kv.chain, branch // size)
        kv.due = sorted((length, kind) for length, kind in due.items() if length > kv.num_computed)
        kv.follows = num_tokens if self._rules.end else NEVER

    def _was_evicted(self, kv: SequenceKV, length: int) -> bool:
        """Whether the next block of its way was there, too: then it leaves nobody's way at `length`."""
        following = kv.chain.keys[length // self._size : length // self._size + 1]
        return bool(following) and self.books.index.evicted.age(following[0]) is not None

    def keep_at(self, kv: SequenceKV, length: int) -> None:
        """Another sequence leaves the way of `kv` there, which has still to compute it."""
        planned = self.books.marks.enabled and length not in (place for place, _ in kv.due)
        if planned and self._rules.branches and length > kv.num_computed:
            insort(kv.due, (length, "branches"))

    def until_mark(self, kv: SequenceKV, num: int) -> int:
        """How many of the next `num` tokens a step may compute: it ends where states are to be kept."""
        return min(num, kv.due[0][0] - kv.num_computed) if kv.due else num

    def computed(self, kv: SequenceKV, length: int) -> None:
        """Tokens up to `length` are committed: keep the states if that is due, or if a decode has filled a block."""
        kind = next((kind for place, kind in kv.due if place == length), None)
        while kv.due and kv.due[0][0] <= length:
            kv.due.pop(0)
        if kind is None and length > kv.follows and not length % self._size:
            kind = "answer"
        mark = None if kind is None else self.books.marks.save(kv, length // self._size, kind)
        if mark is not None:
            self.books.rows.save(kv.seat, mark.blocks)
            if kind != "answer":  # whose last one alone is worth saving
                self._save(mark)

    def at(self, kv: SequenceKV, num_tokens: int) -> Mark | None:
        """The checkpoint after so many tokens, whole blocks of them."""
        return self.books.marks.at(kv.chain, num_tokens // self._size) if self.there else None

    def load(self, kv: SequenceKV, mark: Mark | None) -> None:
        """The states of the seat are those of the mark; those of a sequence of no tokens need none."""
        if mark is not None:
            self.books.marks.use(mark)
            self.books.rows.add([LoadMark(tuple(block.id for block in mark.blocks), kv.seat)])

    def release(self, kv: SequenceKV) -> None:
        """Let go of all blocks, and let checkpoints leave when those before them do: each before its last block."""
        pool, marks = self.books.pool, self.books.marks
        if self.there and marks.enabled and not kv.dropped:
            if (mark := marks.ended(kv)) is not None:
                self._save(mark)
            for mark in marks.along(kv.chain, kv.num_held // self._size):
                pool.release(kv.cut(mark.place))
                if not mark.is_spare:
                    pool.freshen(mark.blocks)
        pool.release(kv.cut(0))

    def _save(self, mark: Mark) -> None:
        """Let the tiers have it, unless it is spare or they do."""
        if self.books.transfers is not None and not mark.is_spare and not mark.blocks[0].saved:
            for block in mark.blocks:
                self.books.transfers.sealed(block)

    def evict(self, mark: Mark, victim: Block) -> None:
        """`victim`, a row of the mark, has to make room: the tiers have it or get it now, unless it was spare."""
        transfers = self.books.transfers
        if transfers is not None and not mark.is_spare:
            self.books.rows.add(transfers.save(block) for block in mark.blocks if not block.saved)
        self.books.marks.evict(mark, victim)

    # ---- drafts ----

    def hold(self, kv: SequenceKV) -> bool:
        """Before a step whose last tokens are drafts: keep the states of now. False when no seat is left for them."""
        if not self.there:
            return True
        if not self.books.seats.spare(kv):
            return False
        self.books.rows.add([CopySeat(kv.seat, kv.spare)])
        return True

    def decide(self, kv: SequenceKV, num: int, wrong: int) -> int:
        """After it: how many of the `num` right tokens count as computed. All of them, unless states saw wrong ones,
        too: they go back to what was held.
        """
        if kv.spare == NONE:
            return num
        if wrong:
            self.books.rows.add([CopySeat(kv.spare, kv.seat)])
        self.books.seats.unspare(kv)
        return 0 if wrong else num
