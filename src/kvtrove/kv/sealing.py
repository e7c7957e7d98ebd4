"""What a commit does to blocks: those that became full are sealed and published, those behind a window are released.

Blocks of a sequence that has given up tokens are sealed for itself and its forks alone: nobody finds them, unless it
goes on behind a prefix that was compacted for all.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

from kvtrove.kv.block import Block
from kvtrove.kv.books import Teller
from kvtrove.kv.retention import Full
from kvtrove.kv.table import SequenceKV, left_behind, next_event


class Books(Teller, Protocol):
    """With who hears of a sealed block. crc: checksum of a row, None when rows are not compared."""

    @property
    def crc(self) -> Callable[[int], int] | None: ...
    def publish(self, block: Block) -> None: ...


class Sealing:
    """The rules of one cache. Called by the manager alone."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.windows = [group for group in books.spec.groups if not isinstance(group.retention, Full)]
        self._rules = tuple({group.retention for group in self.windows})

    def settle(self, kv: SequenceKV, tokens: array[int], before: int, after: int) -> None:
        """Seal what `after` tokens in the tables fill, release what they leave behind."""
        if len(tokens) < after + kv.dropped:
            raise ValueError(f"cannot commit up to token {after + kv.dropped}: only {len(tokens)} token ids were given")
        size = self.books.spec.block_size
        if self.books.index.enabled:
            kv.chain.extend(tokens, after // size)
        for i in range(before // size, after // size):
            for group, table in enumerate(kv.tables):
                self._seal(kv, table.blocks[i], group, i)
        self.books.pool.release(left_behind(kv, self.windows, after, size))
        kv.next_event = next_event(self._rules, after, size)

    def _seal(self, kv: SequenceKV, block: Block | None, group: int, i: int) -> None:
        if block is None:
            return  # of tokens that this group never reads
        books = self.books
        block.sealed = True
        block.group, block.index, block.use = group, i, kv.use
        if books.crc is not None:
            block.crc = books.crc(block.id)
        if books.index.enabled:
            block.key, block.parent, block.tokens = kv.chain.place(i)
        if books.index.enabled and (not kv.dropped or kv.chain.shared):
            books.publish(block)
