"""Where the prefix of an admitted sequence came from, and why tiers did not bring more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtrove.kv.manager import KVCacheManager
from kvtrove.request import PrefixLoad
from kvtrove.scheduler.sequence import Sequence

if TYPE_CHECKING:
    from kvtrove.kv.prefix_cache import Match


def tier_reason(kv: KVCacheManager, seq: Sequence, match: Match) -> str | None:
    """What tiers say of the first block that `seq`, which has taken over `match`, has to compute. None: nothing."""
    if kv.transfers is None:
        return None
    if seq.load is not None and seq.load.problem is not None:
        return seq.load.problem
    if match.elsewhere > match.num_tokens:
        return f"{match.elsewhere - match.num_tokens} tokens more are stored; computing them is faster"
    if match.found > match.num_tokens:
        why = kv.transfers.reason_of_mark(seq.kv.chain, match.found // kv.block_size)
        return f"the blocks are there, no checkpoint of the states: {why}" if why else None
    return kv.transfers.reason(seq.kv.chain, match.num_tokens // kv.block_size)


def sources(seq: Sequence, prefill_rate: float) -> tuple[dict[str, int], PrefixLoad | None]:
    """Tokens reused by tier of the cache, and what loading them cost, when `seq` has just been admitted."""
    reused, load, size = seq.request.num_cached_tokens or 0, seq.load, seq.kv.chain.block_size
    loaded = 0 if load is None or not load.sources else max(0, reused - load.before)
    tiers = {"memory": reused - loaded}
    report = None
    if load is not None and loaded:
        rows = load.sources.total()
        most, *others = (tier for tier, _ in load.sources.most_common())
        tiers |= {tier: load.sources[tier] * loaded // rows // size * size for tier in others}
        tiers[most] = reused - sum(tiers.values())
        report = PrefixLoad(loaded, most, load.seconds, loaded / prefill_rate if prefill_rate else None)
    return {tier: tokens for tier, tokens in tiers.items() if tokens > 0}, report
