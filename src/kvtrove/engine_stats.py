"""What an engine has counted, at one moment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvtrove.checkpoints import Checkpoints
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.stats import KVStats
from kvtrove.kv.tiers.store import TierFigures
from kvtrove.recovery import NO_FAULTS, FaultStats, Recovery
from kvtrove.scheduler.drafts import DraftStats
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.tiering import Tiering


@dataclass(frozen=True)
class EngineStats:
    """A moment of the engine. `kv` counts blocks and, since the start, prefix-cache queries and hits in tokens.

    num_prompt_tokens: of the prompts that have got their first token. num_generation_tokens: drawn since the start.
    checkpoints: `Checkpoints.counts`.
    """

    num_running: int
    num_waiting: int
    num_preemptions: int
    kv: KVStats
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    faults: FaultStats = NO_FAULTS
    drafts: DraftStats | None = None
    tiers: Sequence[TierFigures] = ()
    checkpoints: Mapping[str, int] = field(default_factory=dict)


def engine_stats(
    scheduler: Scheduler, kv: KVCacheManager, recovery: Recovery, tiering: Tiering, checkpoints: Checkpoints
) -> EngineStats:
    """Copies of all counters: later steps change none of them."""
    now, drafter = scheduler.stats(), scheduler.drafter
    return EngineStats(
        num_running=now.num_running,
        num_waiting=now.num_waiting + recovery.num_held,
        num_preemptions=now.num_preemptions,
        kv=kv.stats(),
        num_prompt_tokens=now.num_prompt_tokens,
        num_generation_tokens=now.num_generation_tokens,
        faults=recovery.stats,
        drafts=None if drafter is None else copy.deepcopy(drafter.stats),
        tiers=tiering.figures(),
        checkpoints=dict(checkpoints.counts),
    )
