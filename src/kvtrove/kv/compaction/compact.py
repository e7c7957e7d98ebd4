"""What compaction does to the books: private blocks take the place of the ones that a sequence held.

table   | shared | shared | private | open |              shared ones stay as they are, for whoever finds them
                      gather
then    | private | open |                                sealed again, but found by nobody; another key chain
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.table import SequenceKV


def compact(
    books: KVCacheManager,
    kv: SequenceKV,
    tokens: array[int],
    compactor: Compactor,
    observed: Sequence[Any] = (),
) -> bool:
    """Let `kv`, whose tokens are `tokens`, keep what the compactor keeps; False when blocks are short: nothing changed.

    Which tokens those are is found out when the rows are gathered; everything here depends on their number alone.
    observed: queries of the last tokens, as the runner reported them. What all is kept of is kept as it is.
    """
    held = kv.num_held
    kept = compactor.kept(held)
    if kept == held:
        return True
    size = books.block_size
    per_group = -(-kept // size)
    need = per_group * books.num_groups
    freed = sum(block is not None and block.ref_count == 1 for table in kv.tables for block in table.blocks)
    if need > books.pool.num_available + freed:
        return False
    chain = kv.chain
    if books.index.enabled:
        chain.extend(tokens, held // size)
    sources = tuple(tuple(table.ids[: -(-held // size)].tolist()) for table in kv.tables)
    books.pool.release(kv.cut(0))
    blocks = books.pool.allocate(need)
    assert blocks is not None, "they were counted before"
    kv.extend(blocks[group :: books.num_groups] for group in range(books.num_groups))
    kv.chain = chain.derive(compactor.id.encode(), tokens, held, kept)
    kv.dropped += held - kept
    kv.shift += 0 if compactor.contiguous else held - kept
    kv.packed = kept // size if compactor.unequal else 0
    kv.next_event = 0
    full = kept // size
    if books.index.enabled:
        kv.chain.extend(tokens, full)
    for group, table in enumerate(kv.tables):
        for i, block in enumerate(table.blocks[:full]):
            assert block is not None, "all were just extended"
            block.sealed, block.group, block.index, block.use = True, group, i, kv.use
            if books.index.enabled:
                block.key, block.parent, block.tokens = kv.chain.place(i)
    books.rows.gather(sources, [table.blocks for table in kv.tables], held, compactor, observed)
    books.verify()
    return True
