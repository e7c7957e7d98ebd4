"""Figures of a running engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvtrove.kv.stats import KVStats
from kvtrove.kv.tiers.store import TierFigures
from kvtrove.recovery import NO_FAULTS, FaultStats
from kvtrove.scheduler.drafts import DraftStats


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
