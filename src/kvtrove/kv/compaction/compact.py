"""What compaction does to the books: private blocks take the place of the ones that a sequence held.

table   | shared | shared | private | open |              shared ones stay as they are, for whoever finds them
                      gather
then    | private | open |                                sealed again, but found by nobody; another key chain
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.compaction.decoding import WhileDecoding
from kvtrove.kv.compaction.reconstruct import Probe
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.rows import Gather, Look
from kvtrove.kv.table import SequenceKV


def compact(
    books: KVCacheManager,
    kv: SequenceKV,
    tokens: array[int],
    compactor: Compactor,
    observed: Sequence[Any] = (),
    scores: Mapping[int, Any] | None = None,
    *,
    shared: bool = False,
) -> bool:
    """Let `kv`, whose tokens are `tokens`, keep what the compactor keeps; False when blocks are short: nothing changed.

    Which tokens those are is found out when the rows are gathered; everything here depends on their number alone.
    observed: queries of the last tokens, as the runner reported them. scores: of each layer, found beforehand. shared:
    its rows are published. What all is kept of is kept as it is, but probes look at it.
    """
    held = kv.num_held
    kept, size = compactor.kept(held, kv.dropped), books.block_size
    sources = tuple(tuple(table.ids[: -(-held // size)].tolist()) for table in kv.tables)
    if kept == held:
        if isinstance(compactor, Probe):
            books.rows.add([Look(sources, compactor.places(held), compactor.look, observed, compactor.reads_values)])
        return True
    per_group = -(-kept // size)
    need = per_group * books.num_groups
    freed = sum(block is not None and block.ref_count == 1 for table in kv.tables for block in table.blocks)
    if need > books.pool.num_available + freed:
        return False
    chain = kv.chain
    if books.index.enabled:
        chain.extend(tokens, held // size)
    books.pool.release(kv.cut(0))
    blocks = books.pool.allocate(need)
    assert blocks is not None, "they were counted before"
    kv.extend(blocks[group :: books.num_groups] for group in range(books.num_groups))
    kv.chain = chain.derive(compactor.id.encode(), tokens, held, kept, shared)
    kv.dropped += held - kept
    shift = kv.shift
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
            if shared:
                books.publish(block)
    if scores is None:
        scores, kv.memory = kv.memory, {} if isinstance(compactor, WhileDecoding) and compactor.remembers else None
    targets = tuple(tuple(table.ids.tolist()) for table in kv.tables)
    new = [block for table in kv.tables for block in table.blocks if block is not None]
    books.rows.gather(Gather(sources, targets, held, compactor, observed, scores, kv.memory, shift), new)
    books.verify()
    return True
