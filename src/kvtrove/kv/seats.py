"""Who sits where: one seat per sequence that holds blocks, in a memory beside the arena.

A seat holds what is one sequence's own and is no block: the open block's K and V as they were computed, for formats
that encode whole blocks. Every sequence needs exactly one, so no size has to be weighed against blocks.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol

NONE = -1


class Sitter(Protocol):
    seat: int


class Seats:
    """Numbers 0 .. num - 1, the lowest first, so that few pages are ever touched. num 0: nobody needs one."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._free = list(range(num))

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

    def leave(self, sequence: Sitter) -> None:
        if sequence.seat != NONE:
            heappush(self._free, sequence.seat)
            sequence.seat = NONE
