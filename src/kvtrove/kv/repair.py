"""After a fault: take back what may be wrong, or begin again with empty books. No bytes of the arena are touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtrove.kv.events import KVEvent
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.prefix_cache import PrefixCache
from kvtrove.kv.seats import NONE

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager
    from kvtrove.kv.table import SequenceKV


def forget(manager: KVCacheManager, kv: SequenceKV) -> None:
    """Let nobody find the blocks of `kv` any more, because what was computed into them cannot be trusted.

    Who holds one keeps it; the last one to let go makes it free.
    """
    for block in kv.sealed_blocks():
        if block.published:
            manager.index.forget(block)
            block.published = False
    manager.marks.drop_keys(kv.chain.keys)


def forget_unfilled(manager: KVCacheManager) -> None:
    """A step failed, so rows that it should have filled may hold anything: nobody shall find their blocks."""
    for block in manager.rows.drop():
        if (mark := manager.marks.of(block)) is not None:
            manager.marks.drop(mark)
        elif block.published:
            manager.index.forget(block)
            block.published = False
            if not block.ref_count:
                manager.pool.discard(block)


def rebuild(manager: KVCacheManager) -> None:
    """Books that say that every block is free. All handles and pins are void; the counters go on."""
    for kv in manager.sequences.values():
        kv.capacity, kv.seat, kv.spare = -1, NONE, NONE
    manager.sequences.clear()
    manager.pins.clear()
    manager.seats.clear()
    forget_unfilled(manager)
    manager.marks.reset()
    if manager.transfers is not None:
        manager.transfers.reset()
    rows, enabled = manager.spec.mark_rows, manager.index.enabled
    index = PrefixCache(manager.num_groups, rows, enabled=enabled, clock=manager.pool.clock)
    pool = BlockPool(manager.num_blocks, manager.pool.forget, manager.pool.clock, manager.eviction.order())
    index.num_duplicates, index.num_mismatches = manager.index.num_duplicates, manager.index.num_mismatches
    pool.num_evictions, pool.eviction_age = manager.pool.num_evictions, manager.pool.eviction_age
    manager.index, manager.pool = index, pool
    if manager.on_event is not None:
        manager.on_event(KVEvent("cleared", b"", 0))
