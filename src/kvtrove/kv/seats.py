"""Who sits where: one seat per sequence that holds blocks, in a memory beside the arena.

A seat holds what is one sequence's own and is no block: the open block's K and V as they were computed, for formats
that encode whole blocks. Every sequence needs exactly one, so no size has to be weighed against blocks.
"""

from __future__ import annotations

from heapq import heappop, heappush

NONE = -1


class Seats:
    """Numbers 0 .. num - 1; the lowest free one is taken, so that few pages are ever touched."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._free = list(range(num))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """`NONE` when all are taken."""
        return heappop(self._free) if self._free else NONE

    def give_back(self, seat: int) -> None:
        if seat != NONE:
            heappush(self._free, seat)
