"""One block's metadata, and the eviction order as a list that runs through the blocks themselves.

FREE ──allocate──> OPEN ──seal──> SEALED ⇄ CACHED ──evict──> FREE
                    │               │
                    └── release ────┴─ (never published) ──> FREE
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class BlockState(Enum):
    FREE = "free"  # holds nothing
    OPEN = "open"  # one table holds it and its sequence still writes into it
    SEALED = "sealed"  # full, computed and immutable; any number of tables and pins hold it
    CACHED = "cached"  # sealed, held by nobody, still findable: the first to go when blocks run out


class Block:
    """A row of the arena. Rows are never touched from here; `id` is all that the bytes and the metadata share.

    ref_count: tables that hold the block + pins. key: its place in the key chain, set when it is sealed. parent: the
    key before it. tokens: the int32 little-endian token ids behind the key, compared on every hit.
    published: the prefix cache finds the block under (group, key). idle_since: when it became CACHED, clock seconds.
    saved: it was handed to the tiers, or came from there. index: its place in the sequence. use: what is known of the
    sequence that held it last. uses: hits since it was sealed; eviction orders may lower it. place: the list of an
    eviction order that it is in. priority: blocks of a lower one leave first, until `keep_until`, clock seconds.
    spare: it leaves before all others once nobody holds it.
    """

    __slots__ = (
        "crc",
        "group",
        "id",
        "idle_since",
        "index",
        "keep_until",
        "key",
        "next",
        "parent",
        "place",
        "prev",
        "priority",
        "published",
        "ref_count",
        "saved",
        "sealed",
        "spare",
        "tokens",
        "use",
        "uses",
    )

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.ref_count = 0
        self.prev: Block = self
        self.next: Block = self
        self.place: BlockList | None = None
        self.idle_since = 0.0
        self.wipe()

    def wipe(self) -> None:
        """Forget the content; the block is about to be free or open."""
        self.sealed = False
        self.published = False
        self.group = -1
        self.key = b""
        self.parent = b""
        self.tokens = b""
        self.crc: int | None = None
        self.saved = self.spare = False
        self.index = 0
        self.use: Use | None = None
        self.uses = 0
        self.priority = 0
        self.keep_until = 0.0

    @property
    def state(self) -> BlockState:
        if self.ref_count:
            return BlockState.SEALED if self.sealed else BlockState.OPEN
        return BlockState.CACHED if self.published else BlockState.FREE

    def __repr__(self) -> str:
        return f"<block {self.id} {self.state.value} ref_count={self.ref_count}>"


@dataclass(slots=True, eq=False)
class Use:
    """What an eviction order may know of the sequence that held a block last. One object for all of its blocks.

    turn: prompts of the same conversation before this one. category: the kind of prompt that it is, as a `ReuseModel`
    numbers them. ended: when it let go of its blocks, clock seconds; infinity while it has them. resumed_after: seconds
    from then until a prompt continued it; infinity while none did. num_blocks: full blocks of its prompt.
    """

    turn: int = 0
    category: tuple[int, ...] = ()
    ended: float = float("inf")
    resumed_after: float = float("inf")
    num_blocks: int = 0


class BlockList:
    """A ring of blocks: O(1) at both ends and in the middle. As an eviction order it is least recently used (LRU).

    end ⇄ longest unused ⇄ ... ⇄ used last ⇄ end
    """

    __slots__ = ("_end", "_size")

    def __init__(self) -> None:
        self._end = Block(-1)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, block: Block) -> None:
        """Nobody holds the block any more."""
        last = self._end.prev
        last.next = self._end.prev = block
        block.prev, block.next = last, self._end
        block.place = self
        self._size += 1

    def remove(self, block: Block) -> None:
        """The block is held again, or dropped."""
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = block
        block.place = None
        self._size -= 1

    def victim(self) -> Block:
        """Remove the longest unused block and return it. IndexError when there is none."""
        first = self._end.next
        if first is self._end:
            raise IndexError("no cached block is left to evict")
        self.remove(first)
        return first

    def __iter__(self) -> Iterator[Block]:
        block = self._end.next
        while block is not self._end:
            yield block
            block = block.next
