"""Who sits where: one seat per sequence that holds blocks, in a memory beside the arena.

A seat holds what is one sequence's own and is no block: the open block's K and V as they were computed, for formats
that encode whole blocks, and running states. Every sequence needs exactly one, so no size has to be weighed against
blocks. A second one keeps the states of before a step whose last tokens are drafts.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol

NONE = -1


class Sitter(Protocol):
    """seat: its own. spare: keeps its states as they were, NONE most of the time."""

    seat: int
    spare: int


class Seats:
    """Numbers 0 .. num - 1, the lowest first, so that few pages are ever touched. num 0: nobody needs one."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._free = list(range(num))

    def clear(self) -> None:
        """Nobody sits any more."""
        self._free = list(range(self.num))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def sit(self, sequence: Sitter) -> bool:
        """Whether it has what it needs; it takes a seat if it has none."""
        if not self.num or sequence.seat != NONE:
            return True
        if not self._free:
            return False
        sequence.seat = heappop(self._free)
        return True

    def spare(self, sequence: Sitter) -> bool:
        """Whether it has a second seat now."""
        if sequence.spare == NONE and self._free:
            sequence.spare = heappop(self._free)
        return sequence.spare != NONE

    def leave(self, sequence: Sitter) -> None:
        self.unspare(sequence)
        if sequence.seat != NONE:
            heappush(self._free, sequence.seat)
            sequence.seat = NONE

    def unspare(self, sequence: Sitter) -> None:
        if sequence.spare != NONE:
            heappush(self._free, sequence.spare)
            sequence.spare = NONE
