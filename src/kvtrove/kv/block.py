"""One block's metadata, and the eviction order as a list that runs through the blocks themselves.

FREE ──allocate──> OPEN ──seal──> SEALED ⇄ CACHED ──evict──> FREE
                    │               │
                    └── release ────┴─ (never published) ──> FREE
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum


class BlockState(Enum):
    FREE = "free"  # holds nothing
    OPEN = "open"  # one table holds it and its sequence still writes into it
    SEALED = "sealed"  # full, computed and immutable; any number of tables and pins hold it
    CACHED = "cached"  # sealed, held by nobody, still findable: the first to go when blocks run out


class Block:
    """A row of the arena. Rows are never touched from here; `id` is all that the bytes and the metadata share.

    ref_count: tables that hold the block + pins. key: its place in the key chain, set when it is sealed.
    tokens: the int32 little-endian token ids behind the key, compared on every hit.
    published: the prefix cache finds the block under (group, key). idle_since: when it became CACHED, clock seconds.
    """

    __slots__ = (
        "crc",
        "group",
        "id",
        "idle_since",
        "key",
        "next",
        "prev",
        "published",
        "ref_count",
        "sealed",
        "tokens",
    )

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.ref_count = 0
        self.prev: Block = self
        self.next: Block = self
        self.idle_since = 0.0
        self.wipe()

    def wipe(self) -> None:
        """Forget the content; the block is about to be free or open."""
        self.sealed = False
        self.published = False
        self.group = -1
        self.key = b""
        self.tokens = b""
        self.crc: int | None = None

    @property
    def state(self) -> BlockState:
        if self.ref_count:
            return BlockState.SEALED if self.sealed else BlockState.OPEN
        return BlockState.CACHED if self.published else BlockState.FREE

    def __repr__(self) -> str:
        return f"<block {self.id} {self.state.value} ref_count={self.ref_count}>"


class BlockList:
    """A ring of blocks in the order in which they will be evicted: O(1) append, pop and unlink from the middle.

    end ⇄ longest unused ⇄ ... ⇄ used last ⇄ end
    """

    __slots__ = ("_end", "size")

    def __init__(self) -> None:
        self._end = Block(-1)
        self.size = 0

    def append(self, block: Block) -> None:
        last = self._end.prev
        last.next = self._end.prev = block
        block.prev, block.next = last, self._end
        self.size += 1

    def unlink(self, block: Block) -> None:
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = block
        self.size -= 1

    def pop_first(self) -> Block:
        """The longest unused block. IndexError when there is none."""
        first = self._end.next
        if first is self._end:
            raise IndexError("no cached block is left to evict")
        self.unlink(first)
        return first

    def __iter__(self) -> Iterator[Block]:
        block = self._end.next
        while block is not self._end:
            yield block
            block = block.next
