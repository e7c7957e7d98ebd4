"""The order that knows the load: what is least likely to be used again soon leaves first (`reuse.ReuseModel`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvtrove.kv.block import Block, BlockList, Use
from kvtrove.kv.eviction.reuse import ReuseModel

CHOSEN_AT_ONCE = 32
"""Sequences whose blocks leave before all are ranked again; a small cache ranks more often."""


class Workload:
    """The blocks of a sequence leave together, from its end. Sequences are ranked by the value of keeping them."""

    def __init__(self, model: ReuseModel) -> None:
        self.model = model
        self._lists: dict[Use, BlockList] = {}
        self._next: list[Use] = []  # to leave, the first of them last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Block]:
        return (block for blocks in self._lists.values() for block in blocks)

    def add(self, block: Block) -> None:
        use = block.use or UNKNOWN
        blocks = self._lists.get(use)
        if blocks is None:
            blocks = self._lists[use] = BlockList()
        blocks.add(block)
        self._size += 1

    def remove(self, block: Block) -> None:
        use = block.use or UNKNOWN
        self._lists[use].remove(block)
        self._size -= 1
        if not len(self._lists[use]):
            del self._lists[use]

    def victim(self) -> Block:
        while self._next and self._next[-1] not in self._lists:
            self._next.pop()
        if not self._next:
            self._rank()
        use = self._next[-1]
        block = self._lists[use].victim()
        self._size -= 1
        if not len(self._lists[use]):
            del self._lists[use]
        return block

    def _rank(self) -> None:
        uses = list(self._lists)
        if not uses:
            raise IndexError("no cached block is left to evict")
        values = self.model.values(uses)
        number = min(CHOSEN_AT_ONCE, 1 + len(uses) // 64)
        self._next = [uses[i] for i in np.argsort(values, kind="stable")[:number][::-1]]


UNKNOWN = Use(ended=0.0)
"""The last use of blocks of which nothing is known."""
