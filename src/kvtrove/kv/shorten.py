"""Truncation: a sequence forgets its last tokens, and a sealed block that it cuts through becomes an open copy."""

from __future__ import annotations

from collections.abc import Iterable

from kvtrove.kv.chain import KeyChain
from kvtrove.kv.groups import KVGroup
from kvtrove.kv.marks import Marks
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.row_queue import RowQueue
from kvtrove.kv.table import SequenceKV, first_lost


def shorten(kv: SequenceKV, num_tokens: int, pool: BlockPool, rows: RowQueue) -> bool:
    """`KVCacheManager.truncate`, once it is known that `kv` can resume at `num_tokens`."""
    size = kv.chain.block_size
    held = num_tokens - kv.dropped if num_tokens else 0
    full, part = divmod(held, size)
    cut = [table.blocks[full] for table in kv.tables] if part else []
    need = 0 if part == 0 or full >= kv.num_held // size else kv.num_missing(full + 1, full)
    kept = full + bool(part)
    dropped = sum(b is not None and b.ref_count == 1 for table in kv.tables for b in table.blocks[kept:])
    if need > pool.num_available + dropped:
        return False
    pool.release(kv.cut(kept))
    if need:
        fresh = pool.allocate(need)
        assert fresh is not None, "they were counted before"
        old = kv.cut(full)
        kv.fill(fresh, full + 1)
        rows.copy(cut, (table.blocks[full] for table in kv.tables))
        pool.release(old)
    if not num_tokens and kv.dropped:
        kv.chain, kv.dropped, kv.shift, kv.packed = KeyChain(kv.chain.origin, size), 0, 0, 0
    kv.chain.cut(full)
    kv.num_computed, kv.next_event = num_tokens, 0
    return True


def resumable(
    kv: SequenceKV, windows: Iterable[KVGroup], num_tokens: int, whole_block: bool, marks: Marks | None
) -> int:
    """Where `kv` can resume, at `num_tokens` or, with blocks that were encoded as a whole, at the border below; at the
    last of `marks` where it has states; at 0 where it has given up tokens behind `num_tokens`.

    ValueError when it has not so many tokens, or some group of `windows` has lost what the next query reads.
    """
    if not 0 <= num_tokens <= kv.num_computed:
        raise ValueError(f"num_tokens: {num_tokens} must lie between 0 and the {kv.num_computed} computed")
    size = kv.chain.block_size
    if kv.dropped and num_tokens < kv.dropped + kv.chain.kept:
        return 0
    if whole_block and num_tokens < kv.num_computed // size * size:
        num_tokens = num_tokens // size * size
    if marks is not None and num_tokens < kv.num_computed:
        num_tokens = size * marks.before(kv.chain, min(num_tokens // size, len(kv.chain.keys)))
    for group in windows:
        lost = first_lost(kv.tables[group.index].blocks, group.retention, num_tokens, size)
        if lost is not None:
            raise ValueError(
                f"cannot resume at {num_tokens} of {kv.num_computed} tokens: {group.retention} has given up "
                f"tokens {lost * size} to {(lost + 1) * size - 1}"
            )
    return num_tokens
