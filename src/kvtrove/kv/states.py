"""Running states of sequences, as the books see them: when they are kept in a checkpoint, loaded, or taken back."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from kvtrove.kv.marks import Mark, MarkRules, Marks
from kvtrove.kv.row_queue import RowQueue
from kvtrove.kv.rows import CopySeat, LoadMark
from kvtrove.kv.seats import NONE, Seats
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.kv.table import NEVER, SequenceKV


class States:
    """Of one cache; without layers that have states, nothing happens here. num_marks: checkpoints there is room for."""

    def __init__(self, spec: KVCacheSpec, seats: Seats, rows: RowQueue, marks: Marks, rules: MarkRules | None) -> None:
        self.there = bool(spec.states)
        self._seats, self._rows, self._marks, self._rules = seats, rows, marks, rules or MarkRules()
        self._size = spec.block_size

    # ---- checkpoints ----

    def plan(self, kv: SequenceKV, num_tokens: int, borders: Iterable[int] = ()) -> None:
        """Where the states of a sequence that begins to compute its prompt of `num_tokens` will be kept.

        borders: lengths at which its messages end.
        """
        if self._marks.num:
            branch = kv.found if kv.found > kv.num_computed else 0
            due = self._rules.due(num_tokens, borders, branch, self._size, max(2, self._marks.num // 2))
            kv.due = [length for length in due if length > kv.num_computed]
            kv.follows = num_tokens if self._rules.end else NEVER

    def keep_at(self, kv: SequenceKV, length: int) -> None:
        """Another sequence leaves the way of `kv` there, which has still to compute it."""
        if self._marks.num and self._rules.branches and length > kv.num_computed and length not in kv.due:
            insort(kv.due, length)

    def until_mark(self, kv: SequenceKV, num: int) -> int:
        """How many of the next `num` tokens a step may compute: it ends where states are to be kept."""
        return min(num, kv.due[0] - kv.num_computed) if kv.due else num

    def computed(self, kv: SequenceKV, length: int) -> None:
        """Tokens up to `length` are committed: keep the states if that is due, or if a decode has filled a block."""
        is_due = length in kv.due
        while kv.due and kv.due[0] <= length:
            kv.due.pop(0)
        if is_due or (length > kv.follows and not length % self._size):
            mark = self._marks.save(kv.chain, length // self._size, kv.mark, passing=not is_due)
            kv.mark = mark if mark is not None and mark.passing else None
            if mark is not None:
                self._rows.save(kv.seat, mark)

    def at(self, kv: SequenceKV, num_tokens: int) -> Mark | None:
        """The checkpoint after so many tokens, whole blocks of them."""
        return self._marks.at(kv.chain, num_tokens // self._size) if self.there else None

    def load(self, kv: SequenceKV, mark: Mark | None) -> None:
        """The states of the seat are those of the mark; those of a sequence of no tokens need none."""
        if mark is not None:
            self._marks.use(mark)
            kv.mark = mark if mark.passing else None  # the conversation goes on: its next one takes the place
            self._rows.add([LoadMark(mark.row, kv.seat)])

    # ---- drafts ----

    def hold(self, kv: SequenceKV) -> bool:
        """Before a step whose last tokens are drafts: keep the states of now. False when no seat is left for them."""
        if not self.there:
            return True
        if not self._seats.spare(kv):
            return False
        self._rows.add([CopySeat(kv.seat, kv.spare)])
        return True

    def decide(self, kv: SequenceKV, num: int, wrong: int) -> int:
        """After it: how many of the `num` right tokens count as computed. All of them, unless states saw wrong ones,
        too: they go back to what was held.
        """
        if kv.spare == NONE:
            return num
        if wrong:
            self._rows.add([CopySeat(kv.spare, kv.seat)])
        self._seats.unspare(kv)
        return 0 if wrong else num
