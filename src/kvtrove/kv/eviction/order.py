"""EvictionOrder: the whole contract of an eviction policy, a value that a pool keeps its CACHED blocks in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kvtrove.kv.block import Block


class EvictionOrder(Protocol):
    """The blocks that nobody holds, in some order.

    A block helps only while all blocks before it are there, so a sequence's end must leave before its beginning. The
    releaser sees to that by adding the end first: an order keeps equally good blocks in the order in which they came.
    """

    def add(self, block: Block) -> None:
        """Nobody holds the block any more."""
        ...

    def remove(self, block: Block) -> None:
        """The block is held again, or dropped."""
        ...

    def victim(self) -> Block:
        """Remove the block that is to leave first and return it. IndexError when there is none."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Block]: ...
