"""Who gets a block: FREE ones first, then the CACHED one that comes first in the eviction order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from kvtrove.kv.block import Block, BlockList, BlockState
from kvtrove.kv.eviction.order import EvictionOrder


class BlockPool:
    """`num_blocks` interchangeable blocks.

    Blocks are created when they are first needed, so a pool of a million costs nothing until it is used. Recycled rows
    are handed out before untouched ones: their memory is mapped and warm.

    order: who leaves first (LRU when left out); spare blocks leave before all others. forget: called with a CACHED
    block that is about to lose its content, so that nothing finds it any more; it may discard others with it.
    """

    def __init__(
        self,
        num_blocks: int,
        forget: Callable[[Block], None],
        clock: Callable[[], float] = monotonic,
        order: EvictionOrder | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.blocks: list[Block] = []  # those created so far; blocks[i].id == i
        self.cached = BlockList() if order is None else order
        self.spare = BlockList()
        self.num_evictions = 0
        self.eviction_age: float | None = None
        self._free: list[Block] = []
        self.forget = forget
        self.clock = clock

    @property
    def num_free(self) -> int:
        return self.num_blocks - len(self.blocks) + len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self.cached) + len(self.spare)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: FREE and CACHED."""
        return self.num_free + self.num_cached

    @property
    def free_blocks(self) -> tuple[Block, ...]:
        """The recycled FREE blocks; those never created are not among them."""
        return tuple(self._free)

    def allocate(self, n: int) -> list[Block] | None:
        """`n` OPEN blocks with one reference each. If None is returned, there are not enough and nothing changed."""
        if n > self.num_available:
            return None
        taken = [self._take() for _ in range(n)]
        for block in taken:
            block.ref_count = 1
        return taken

    def _take(self) -> Block:
        if self._free:
            return self._free.pop()
        if len(self.blocks) < self.num_blocks:
            self.blocks.append(Block(len(self.blocks)))
            return self.blocks[-1]
        block = (self.spare if len(self.spare) else self.cached).victim()
        self.num_evictions += 1
        self.eviction_age = self.clock() - block.idle_since
        self.forget(block)
        block.wipe()
        return block

    def acquire(self, block: Block) -> None:
        """One reference more; a CACHED block leaves the eviction order. The block must be SEALED or CACHED."""
        if block.ref_count == 0:
            self._order_of(block).remove(block)
        block.ref_count += 1

    def release(self, blocks: Iterable[Block]) -> None:
        """One reference less for each, in the order in which they should be evicted.

        The last reference gone, a published block becomes CACHED and any other one FREE.
        """
        for block in blocks:
            block.ref_count -= 1
            if block.ref_count:
                continue
            if block.published:
                block.idle_since = self.clock()
                self._order_of(block).add(block)
            else:
                block.wipe()
                self._free.append(block)

    def discard(self, block: Block) -> None:
        """Make a CACHED block FREE that nobody finds any more."""
        self._order_of(block).remove(block)
        block.wipe()
        self._free.append(block)

    def drop_cached(self) -> int:
        """Make every CACHED block FREE; returns how many there were."""
        dropped = self.num_cached
        for block in [*self.spare, *self.cached]:
            if block.state is BlockState.CACHED:  # and was not discarded with one before it
                self._order_of(block).remove(block)
                self.forget(block)
                block.wipe()
                self._free.append(block)
        return dropped

    def freshen(self, blocks: Iterable[Block]) -> None:
        """Those of the blocks that nobody holds leave as if they had been used just now, one after the other."""
        for _ in self._taken_out(blocks):
            pass

    def set_spare(self, blocks: Iterable[Block], spare: bool) -> None:
        """Whether the blocks leave before all others."""
        for block in self._taken_out(blocks):
            block.spare = spare

    def keep(self, blocks: Iterable[Block], priority: int, until: float) -> None:
        """Blocks of a lower priority leave first, until then, clock seconds. What others asked for holds as well."""
        now = self.clock()
        for block in self._taken_out(blocks):
            block.priority = max(block.priority if block.keep_until > now else 0, priority)
            block.keep_until = max(block.keep_until, until)

    def _taken_out(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Each block, to be changed; one that nobody holds then has the place that it deserves, behind its equals."""
        for block in blocks:
            if not block.ref_count:
                self._order_of(block).remove(block)
            yield block
            if not block.ref_count:
                self._order_of(block).add(block)

    def _order_of(self, block: Block) -> EvictionOrder:
        return self.spare if block.spare else self.cached
