"""When a prompt takes over text that moved: between two steps, at the first token of each run that the cache has."""

from __future__ import annotations

from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.moved import find_moved, take_over
from kvtrove.kv.table import NEVER
from kvtrove.scheduler.computing import BlocksInWork
from kvtrove.scheduler.sequence import Sequence


def plan_move(kv: KVCacheManager, seq: Sequence, least: int) -> None:
    """Of a sequence that begins to compute."""
    seq.kv.moves_at = NEVER
    if least and seq.reusable and kv.index.enabled:
        found = find_moved(kv, seq.tokens, seq.kv.num_computed, least)
        seq.kv.moves_at = NEVER if found is None else found.start


def take_moved(kv: KVCacheManager, seq: Sequence, least: int, computing: BlocksInWork) -> None:
    """Take over the run that begins where `seq` is computed up to, and more runs behind it.

    What has left the cache since it was planned, or finds no blocks, is computed.
    """
    if seq.kv.moves_at != seq.kv.num_computed:
        return
    seq.kv.moves_at = NEVER
    found = find_moved(kv, seq.tokens, seq.kv.num_computed, least)
    while found is not None and found.start == seq.kv.num_computed and take_over(kv, seq.kv, seq.tokens, found):
        computing.leave(seq)  # its blocks have keys of their own from here on
        if seq.num_output == 0:
            seq.request.metrics.num_moved_tokens += found.num_tokens
        found = find_moved(kv, seq.tokens, seq.kv.num_computed, least)
        if found is not None and found.start > seq.kv.num_computed:
            seq.kv.moves_at = found.start
