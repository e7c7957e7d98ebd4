"""What the cache is doing, for people: a line per step, and the pool as a picture of one character per block."""

from __future__ import annotations

from kvtrove.kv.block import Block, BlockState
from kvtrove.kv.manager import KVCacheManager

WIDTH = 64
MAX_BLOCKS = 4096  # a picture of more is no picture
MARKS = {BlockState.FREE: ".", BlockState.OPEN: "o", BlockState.SEALED: "s", BlockState.CACHED: "c"}


def line(kv: KVCacheManager) -> str:
    """``blocks: 12 used, 40 cached, 972 free of 1024; hits 640 of 1200 tokens; 3 evictions; 2 sequences, 0 pins``"""
    s = kv.stats()
    blocks = f"{s.used} used, {s.cached} cached, {s.free} free of {s.num_blocks}"
    holders = f"{len(kv.sequences)} sequences, {len(kv.pins)} pins"
    return f"blocks: {blocks}; hits {s.hits} of {s.queries} tokens; {s.evictions} evictions; {holders}"


def grid(kv: KVCacheManager) -> str:
    """The first `MAX_BLOCKS` blocks in order of their ids, `WIDTH` a row.

    . free   o open   s sealed, held once   2-9 + sealed, held that often (+: more)   c cached
    """
    created = kv.pool.blocks[:MAX_BLOCKS]
    marks = "".join(map(_mark, created)).ljust(min(kv.num_blocks, MAX_BLOCKS), MARKS[BlockState.FREE])
    rows = [f"{at:6d} {marks[at : at + WIDTH]}" for at in range(0, len(marks), WIDTH)]
    more = kv.num_blocks - len(marks)
    return "\n".join([*rows, f"       and {more} more"] if more else rows)


def _mark(block: Block) -> str:
    if block.state is BlockState.SEALED and block.ref_count > 1:
        return str(block.ref_count) if block.ref_count < 10 else "+"
    return MARKS[block.state]
