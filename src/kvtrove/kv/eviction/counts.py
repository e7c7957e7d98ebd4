"""Orders that count: least frequently used, and GreedyDual with frequency, size and cost."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain

from kvtrove.kv.block import Block, BlockList

MOST_USES = 15
HALVE_EVERY = 8  # additions per block, after which counts are halved: what was popular once must not stay for ever
COST_DOUBLES = 256  # blocks of prefix after which computing one more takes twice as long, attention included


class LeastFrequentlyUsed:
    """Fewest uses first; among equals the longest unused. Counts are halved now and then."""

    def __init__(self) -> None:
        self._lists = [BlockList() for _ in range(MOST_USES + 1)]
        self._size = self._added = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Block]:
        return chain.from_iterable(self._lists)

    def add(self, block: Block) -> None:
        block.uses = min(block.uses, MOST_USES)
        self._lists[block.uses].add(block)
        self._size += 1
        self._added += 1
        if self._added > HALVE_EVERY * max(64, self._size):
            self._halve()

    def remove(self, block: Block) -> None:
        assert block.place is not None, "it was added"
        block.place.remove(block)
        self._size -= 1

    def victim(self) -> Block:
        block = next((blocks for blocks in self._lists if len(blocks)), self._lists[0]).victim()
        self._size -= 1
        return block

    def _halve(self) -> None:
        blocks, self._added = list(self), 0
        for block in blocks:
            self.remove(block)
            block.uses //= 2
        for block in sorted(blocks, key=lambda block: block.idle_since):
            self._lists[block.uses].add(block)
            self._size += 1


class GreedyDual:
    """GreedyDual-Size-Frequency (Cherkasova 1998): priority = age of the cache + uses x seconds to compute / bytes.

    All blocks have equal bytes. Computing one takes longer the more stands before it. Whatever is released together
    keeps the end before the beginning: a block's priority is at least that of the blocks behind it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Block]] = []  # entries of blocks that have left are skipped
        self._entry: dict[int, int] = {}  # block id -> number of its entry
        self._number = 0
        self._age = 0.0
        self._last: tuple[Block | None, float] = (None, 0.0)

    def __len__(self) -> int:
        return len(self._entry)

    def __iter__(self) -> Iterator[Block]:
        return (block for _, number, block in sorted(self._heap[:], key=_rank) if self._is_valid(number, block))

    def add(self, block: Block) -> None:
        priority = self._age + (1 + block.uses) * (1 + block.index / COST_DOUBLES)
        behind, floor = self._last
        if behind is not None and behind.use is block.use is not None and behind.index >= block.index:
            priority = max(priority, floor)
        self._last = block, priority
        self._number += 1
        self._entry[block.id] = self._number
        heapq.heappush(self._heap, (priority, self._number, block))
        if len(self._heap) > 64 + 4 * len(self._entry):
            self._heap = [entry for entry in self._heap if self._is_valid(entry[1], entry[2])]
            heapq.heapify(self._heap)

    def remove(self, block: Block) -> None:
        del self._entry[block.id]

    def victim(self) -> Block:
        while True:
            priority, number, block = heapq.heappop(self._heap)
            if self._is_valid(number, block):
                del self._entry[block.id]
                self._age = max(self._age, priority)
                return block

    def _is_valid(self, number: int, block: Block) -> bool:
        return self._entry.get(block.id) == number


def _rank(entry: tuple[float, int, Block]) -> tuple[float, int]:
    return entry[:2]
