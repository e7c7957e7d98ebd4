"""Queues that tell what was used again from what was not: S3-FIFO and SIEVE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from kvtrove.kv.block import Block, BlockList

SMALL_SHARE = 10  # the small queue may have one block in so many
MOST_USES = 3


class S3Fifo:
    """Three queues (S3-FIFO, SOSP'23): a small one on trial, a main one, and the keys of what failed the trial.

    new ──> small ──not used again──> gone, key remembered
              │ used again                     │ computed again
              v                                v
            main ──> used again: back to its end, one use less; else gone
    """

    def __init__(self) -> None:
        self._small, self._main = BlockList(), BlockList()
        self._ghosts: dict[bytes, None] = {}  # the longest gone comes first

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __iter__(self) -> Iterator[Block]:
        return chain(self._small, self._main)

    def add(self, block: Block) -> None:
        ghost = block.key in self._ghosts
        self._ghosts.pop(block.key, None)
        (self._main if block.uses or ghost else self._small).add(block)

    def remove(self, block: Block) -> None:
        place = self._small if block.place is self._small else self._main
        place.remove(block)

    def victim(self) -> Block:
        while len(self._small) * SMALL_SHARE <= len(self) and len(self._main):
            block = self._main.victim()
            if not block.uses:
                return block
            block.uses = min(block.uses, MOST_USES) - 1
            self._main.add(block)
        block = self._small.victim()
        self._ghosts[block.key] = None
        while len(self._ghosts) > max(SMALL_SHARE, len(self)):
            del self._ghosts[next(iter(self._ghosts))]
        return block


class Sieve:
    """One queue and a hand that moves from old to new and evicts what was not used since it passed (SIEVE, NSDI'24).

    oldest | passed by the hand | hand > ahead of it ... | newest
    """

    def __init__(self) -> None:
        self._passed, self._ahead = BlockList(), BlockList()

    def __len__(self) -> int:
        return len(self._passed) + len(self._ahead)

    def __iter__(self) -> Iterator[Block]:
        return chain(self._ahead, self._passed)

    def add(self, block: Block) -> None:
        self._ahead.add(block)

    def remove(self, block: Block) -> None:
        place = self._passed if block.place is self._passed else self._ahead
        place.remove(block)

    def victim(self) -> Block:
        while True:
            if not len(self._ahead):
                self._passed, self._ahead = self._ahead, self._passed
            block = self._ahead.victim()
            if not block.uses:
                return block
            block.uses = 0
            self._passed.add(block)
