"""When a prompt takes over text that moved: between two steps, at the first token of each run that the cache has."""

from __future__ import annotations

from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.moved import find_moved, take_over
from kvtrove.kv.table import NEVER
from kvtrove.scheduler.computing import BlocksInWork
from kvtrove.scheduler.sequence import Sequence


def plan_move(kv: KVCacheManager, seq: Sequence, least: int) -> None:
    """Of a sequence that begins to compute, or has just taken over a run."""
    seq.kv.moves_at = NEVER
    if least and seq.reusable and kv.index.enabled:
        found = find_moved(kv, seq.tokens, seq.kv.num_computed, least)
        seq.kv.moves_at = NEVER if found is None else found.start


def take_moved(kv: KVCacheManager, seq: Sequence, least: int, computing: BlocksInWork) -> None:
    """Take over the run that begins where `seq` is computed up to, and more runs behind it.

    What has left the cache since it was planned, or finds no blocks, is computed.
    """
    while seq.kv.moves_at == seq.kv.num_computed:
        found = find_moved(kv, seq.tokens, seq.kv.num_computed, least)
        if found is None or found.start != seq.kv.num_computed or not take_over(kv, seq.kv, seq.tokens, found):
            seq.kv.moves_at = NEVER
            return
        computing.leave(seq)  # its blocks have keys of their own from here on
        if seq.num_output == 0:
            seq.request.metrics.num_moved_tokens += found.num_tokens
        plan_move(kv, seq, least)
