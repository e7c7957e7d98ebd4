"""When sequences give up tokens: between two steps, at lengths that depend on their tokens alone.

A sequence that was preempted is compacted again at the same length, from the same bytes: no history shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvtrove.kv.compaction.compact import compact
from kvtrove.kv.compaction.compactor import NEVER
from kvtrove.kv.manager import KVCacheManager
from kvtrove.scheduler.sequence import Sequence


def plan_compaction(seq: Sequence) -> None:
    """Of a sequence that begins to compute, or has just been compacted."""
    request = seq.request
    seq.kv.compacts_at = NEVER
    if request.compactor is not None:
        seq.kv.compacts_at = request.compactor.due(len(request.prompt), seq.kv.dropped)


def give_up_tokens(kv: KVCacheManager, seq: Sequence) -> bool:
    """Compact `seq` if that is due. False when blocks are short, and nothing has changed."""
    compactor = seq.request.compactor
    if compactor is None or seq.kv.compacts_at > seq.kv.num_computed:
        return True
    if not compact(kv, seq.kv, seq.tokens, compactor, seq.observed):
        return False
    metrics = seq.request.metrics
    metrics.num_dropped_tokens = max(metrics.num_dropped_tokens, seq.kv.dropped)
    seq.observed = []
    plan_compaction(seq)
    return True


def compact_overdue(kv: KVCacheManager, running: Mapping[int, Sequence], preempt: Callable[[Sequence], None]) -> None:
    """Of sequences that were due when blocks were short: whoever came last makes room, if need be itself."""
    for seq in list(running.values()):
        while seq.id in running and not give_up_tokens(kv, seq):
            preempt(max(running.values(), key=lambda s: (s.request.arrival, s.index)))
