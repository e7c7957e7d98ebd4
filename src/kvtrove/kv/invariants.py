"""The invariants of the cache as sentences about what is wrong. Reads everything, changes nothing.

I9 (blocks are pinned while a transfer reads them) has nothing to check: no transfer is ever in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvtrove.kv.block import Block, BlockState
from kvtrove.kv.retention import live_blocks
from kvtrove.kv.table import SequenceKV

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


class InvariantError(AssertionError):
    """The cache contradicts itself: a bug here, or a caller that changed what is not its own."""


def violations(manager: KVCacheManager) -> list[str]:
    """Everything that breaks I1 to I8, one sentence each."""
    rules = (_counts, _references, _keys, _eviction_order, _live_blocks, _bytes, _isolation)
    return [sentence for rule in rules for sentence in rule(manager)]


def _counts(manager: KVCacheManager) -> Iterator[str]:
    pool = manager.pool
    states = Counter(block.state for block in pool.blocks)
    used = states[BlockState.OPEN] + states[BlockState.SEALED]
    if pool.num_free + pool.num_cached + used != pool.num_blocks:
        yield f"I1: {pool.num_free} free + {pool.num_cached} cached + {used} used blocks are not {pool.num_blocks}"
    free = [block for block in pool.blocks if block.state is BlockState.FREE]
    if sorted(block.id for block in pool.free_blocks) != [block.id for block in free]:
        yield f"I1: the free list holds {len(pool.free_blocks)} blocks, {len(free)} are free"


def _references(manager: KVCacheManager) -> Iterator[str]:
    tables = Counter(b.id for _, _, b in _entries(manager))
    pins = Counter(b.id for pin in manager.pins.values() for b in pin.blocks)
    for block in manager.pool.blocks:
        held, pinned = tables[block.id], pins[block.id]
        if block.ref_count != held + pinned:
            yield f"I2: {block} is held by {held} tables and {pinned} pins"
        if block.state is BlockState.OPEN and (held, pinned) != (1, 0):
            yield f"I3: {block} is open in {held} tables and pinned {pinned} times"


def _keys(manager: KVCacheManager) -> Iterator[str]:
    for block in manager.pool.blocks:
        if bool(block.key) != (block.sealed and manager.enable_prefix_caching):
            yield f"I4: {block} is {'' if block.sealed else 'not '}sealed and has {'a' if block.key else 'no'} key"
        found = block.sealed and manager.index.holds(block)
        if block.published != found:
            yield f"I4: {block} is {'' if block.published else 'not '}published, the index says otherwise"
    published = sum(block.published for block in manager.pool.blocks)
    if published != len(manager.index):
        yield f"I4: the index holds {len(manager.index)} blocks, {published} are published"
    for kv, i, block in _entries(manager):
        if block.sealed != (i < kv.num_computed // manager.block_size):
            yield f"I4: {block} is entry {i} of a sequence of {kv.num_computed} computed tokens"


def _eviction_order(manager: KVCacheManager) -> Iterator[str]:
    order = list(manager.pool.cached)
    for block in order:
        if block.state is not BlockState.CACHED:
            yield f"I5: {block} is in the eviction order"
    cached = sum(block.state is BlockState.CACHED for block in manager.pool.blocks)
    if not len(order) == len({block.id for block in order}) == cached == manager.pool.num_cached:
        yield f"I5: the eviction order has {len(order)} blocks and says {manager.pool.num_cached}, {cached} are cached"


def _live_blocks(manager: KVCacheManager) -> Iterator[str]:
    size = manager.block_size
    for kv in manager.sequences.values():
        n = kv.num_computed
        for group, table in zip(manager.spec.groups, kv.tables, strict=True):
            held = {i for i, block in enumerate(table.blocks) if block is not None}
            needed = set(live_blocks(group.retention, n, size)) | set(range(n // size, kv.capacity // size))
            if held != needed:
                yield f"I6: group {group.index} at {n} tokens lacks blocks {needed - held} and keeps {held - needed}"
            if table.num_held != len(held):
                yield f"I6: group {group.index} counts {table.num_held} blocks and holds {len(held)}"
            ids = [-1 if block is None else block.id for block in table.blocks]
            if ids != table.ids.tolist():
                yield f"I6: group {group.index} hands out the ids {table.ids.tolist()} for the blocks {ids}"


def _bytes(manager: KVCacheManager) -> Iterator[str]:
    if manager.crc is None:
        return
    for block in manager.pool.blocks:
        if block.crc is not None and block.crc != manager.crc(block.id):
            yield f"I7: the bytes of {block} changed after it was sealed"


def _isolation(manager: KVCacheManager) -> Iterator[str]:
    if not manager.enable_prefix_caching:
        return
    for kv in manager.sequences.values():
        if kv.chain.root != manager.chain_root(kv.salt):
            yield f"I8: a sequence of salt {kv.salt!r} has the key chain of another model, format or tenant"
    for kv, i, block in _entries(manager):
        if block.sealed and (block.key, block.tokens) != (kv.chain.keys[i], kv.chain.tokens[i]):
            yield f"I8: {block} is entry {i} of a sequence with another prefix or another tenant"


def _entries(manager: KVCacheManager) -> Iterator[tuple[SequenceKV, int, Block]]:
    """Every (sequence, index, block) of every table."""
    for kv in manager.sequences.values():
        for table in kv.tables:
            for i, block in enumerate(table.blocks):
                if block is not None:
                    yield kv, i, block
