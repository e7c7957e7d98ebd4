"""Priorities on top of any order: blocks of a lower priority leave first, while that of the others lasts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import chain

from kvtrove.kv.block import Block
from kvtrove.kv.eviction.order import EvictionOrder


class Prioritised:
    """One order for each priority. A block whose `keep_until` has passed has priority 0."""

    def __init__(self, make: Callable[[], EvictionOrder], clock: Callable[[], float]) -> None:
        self._make, self._clock = make, clock
        self._plain = make()
        self._orders: dict[int, EvictionOrder] = {0: self._plain}
        self._home: dict[int, int] = {}  # block id -> priority, where it is not 0
        self._ends: list[tuple[float, int, Block]] = []

    def __len__(self) -> int:
        return sum(map(len, self._orders.values()))

    @property
    def num_kept(self) -> int:
        """Blocks with a priority, which has not been found to be over."""
        return len(self._home)

    def __iter__(self) -> Iterator[Block]:
        return chain.from_iterable(order for _, order in sorted(self._orders.items(), key=lambda item: item[0]))

    def add(self, block: Block) -> None:
        if not block.priority or block.keep_until <= self._clock():
            block.priority = 0
            self._plain.add(block)
            return
        if block.priority not in self._orders:
            self._orders[block.priority] = self._make()
        self._orders[block.priority].add(block)
        self._home[block.id] = block.priority
        heapq.heappush(self._ends, (block.keep_until, block.id, block))

    def remove(self, block: Block) -> None:
        self._orders[self._home.pop(block.id, 0)].remove(block)

    def victim(self) -> Block:
        self._expire()
        priority = min((priority for priority, order in self._orders.items() if len(order)), default=0)
        block = self._orders[priority].victim()
        self._home.pop(block.id, None)
        return block

    def _expire(self) -> None:
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            end, _, block = heapq.heappop(self._ends)
            if block.id in self._home and block.keep_until == end:
                self.remove(block)
                block.priority = 0
                self._plain.add(block)
