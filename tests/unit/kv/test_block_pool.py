"""BlockPool: who gets which block, and in which order cached ones leave."""

from __future__ import annotations

import pytest

from kvtrove.kv.block import Block, BlockList, BlockState
from kvtrove.kv.pool import BlockPool


def make_pool(num_blocks: int, clock: list[float] | None = None) -> tuple[BlockPool, list[int]]:
    """A pool and the ids of the blocks that it told to be forgotten."""
    forgotten: list[int] = []
    now = clock or [0.0]
    return BlockPool(num_blocks, lambda block: forgotten.append(block.id), lambda: now[0]), forgotten


def seal(block: Block) -> Block:
    block.sealed = block.published = True
    return block


def take(pool: BlockPool, n: int) -> list[Block]:
    blocks = pool.allocate(n)
    assert blocks is not None
    return blocks


def test_a_huge_pool_is_empty_until_it_is_used() -> None:
    pool, _ = make_pool(10**12)  # one object per block would not fit any machine
    assert pool.blocks == []
    assert pool.num_free == 10**12
    assert [block.id for block in take(pool, 3)] == [0, 1, 2]
    assert (len(pool.blocks), pool.num_free) == (3, 10**12 - 3)


def test_all_or_nothing() -> None:
    pool, _ = make_pool(4)
    take(pool, 3)
    assert pool.allocate(2) is None
    assert pool.num_available == 1
    assert len(take(pool, 1)) == 1


def test_released_unpublished_blocks_are_free_and_blank() -> None:
    pool, forgotten = make_pool(4)
    (block,) = take(pool, 1)
    block.sealed, block.key = True, b"key"
    pool.release([block])
    assert block.state is BlockState.FREE
    assert (block.sealed, block.key) == (False, b"")
    assert forgotten == [], "nothing could find it"


def test_recycled_rows_come_before_untouched_ones() -> None:
    pool, _ = make_pool(4)
    first, _ = take(pool, 2)
    pool.release([first])
    assert take(pool, 1) == [first]


def test_the_longest_unused_block_is_evicted_first_and_only_when_nothing_is_free() -> None:
    pool, forgotten = make_pool(4)
    a, b, c = (seal(block) for block in take(pool, 3))
    pool.release([b, a, c])
    take(pool, 1)
    assert forgotten == [], "one block was still free"
    assert take(pool, 2) == [b, a]
    assert forgotten == [b.id, a.id]
    assert pool.num_evictions == 2
    assert b.state is BlockState.OPEN


def test_acquiring_takes_a_block_out_of_the_eviction_order() -> None:
    pool, forgotten = make_pool(3)
    a, b, c = (seal(block) for block in take(pool, 3))
    pool.release([a, b, c])
    pool.acquire(b)
    pool.acquire(b)
    assert (b.state, b.ref_count) == (BlockState.SEALED, 2)
    assert take(pool, 2) == [a, c]
    assert forgotten == [a.id, c.id]
    pool.release([b])
    assert pool.num_cached == 0, "somebody still holds it"
    pool.release([b])
    assert list(pool.cached) == [b]


def test_dropping_the_cached_blocks_makes_them_free() -> None:
    pool, forgotten = make_pool(4)
    a, b, c = (seal(block) for block in take(pool, 3))
    pool.release([a, b])
    assert pool.drop_cached() == 2
    assert forgotten == [a.id, b.id]
    assert (pool.num_free, pool.num_cached, c.state) == (3, 0, BlockState.SEALED)


def test_eviction_age_is_the_time_since_the_last_use() -> None:
    now = [10.0]
    pool, _ = make_pool(1, now)
    (block,) = take(pool, 1)
    pool.release([seal(block)])
    assert pool.eviction_age is None
    now[0] = 17.5
    take(pool, 1)
    assert pool.eviction_age == 7.5


def test_block_list_unlinks_from_anywhere() -> None:
    blocks, order = [Block(i) for i in range(5)], BlockList()
    for block in blocks:
        order.add(block)
    for i in (2, 0, 4):
        order.remove(blocks[i])
    assert [block.id for block in order] == [1, 3]
    assert len(order) == 2
    assert [order.victim().id, order.victim().id] == [1, 3]
    with pytest.raises(IndexError, match="no cached block"):
        order.victim()
