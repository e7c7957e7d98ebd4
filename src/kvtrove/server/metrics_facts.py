"""What metrics are computed from: fixed facts, what grew since the last look, how long a request took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

from kvtrove.plan.parameters import count_parameters
from kvtrove.request import RequestMetrics
from kvtrove.scheduler.drafts import DraftStats
from kvtrove.server.observer import PromptResult

if TYPE_CHECKING:
    from kvtrove.engine import Engine
    from kvtrove.engine_stats import EngineStats


@dataclass(frozen=True)
class Facts:
    """Of an engine, for its whole life. Bytes for block_bytes (a row of the pool) and weight_bytes."""

    model_name: str
    max_model_len: int
    block_size: int
    num_blocks: int
    block_bytes: int
    weight_bytes: int
    cache_dtype: str
    enable_prefix_caching: bool

    @classmethod
    def of(cls, engine: Engine, model_name: str) -> Facts:
        return cls(
            model_name=model_name,
            max_model_len=engine.max_model_len,
            block_size=engine.config.block_size,
            num_blocks=engine.kv.num_blocks,
            block_bytes=engine.runner.cache.block_bytes,
            weight_bytes=count_parameters(engine.spec).nbytes(engine.runner.model.precision),
            cache_dtype=engine.config.cache,
            enable_prefix_caching=engine.config.enable_prefix_caching,
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """How much the engine's totals grew between two looks. queries, hits: prompt tokens looked up and found.

    faults: steps that failed. failed: requests ended for it.
    """

    queries: int
    hits: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    evictions: int
    duplicates: int
    mismatches: int
    faults: int
    failed: int
    restarts: int
    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_per_pos: tuple[int, ...] = field(default=(), kw_only=True)

    @classmethod
    def between(cls, before: EngineStats | None, now: EngineStats) -> Growth:
        """`before` None is an engine that has done nothing."""
        new, old = _totals(now), _totals(before) if before else ()
        grown = [one - other for one, other in zip_longest(new, old, fillvalue=0)]
        places = now.drafts.accepted_per_pos if now.drafts else []
        earlier = before.drafts.accepted_per_pos if before and before.drafts else []
        per_pos = tuple(one - other for one, other in zip_longest(places, earlier, fillvalue=0))
        return replace(cls(*grown), accepted_per_pos=per_pos)


def _totals(stats: EngineStats) -> tuple[int, ...]:
    kv = stats.kv
    tokens = (kv.queries, kv.hits, stats.num_prompt_tokens, stats.num_generation_tokens)
    faults = stats.faults.steps, stats.faults.requests, stats.faults.restarts
    drafts = stats.drafts or DraftStats()
    drafted = drafts.num_drafts, drafts.num_draft_tokens, drafts.num_accepted_tokens
    return (*tokens, stats.num_preemptions, kv.evictions, kv.duplicates, kv.mismatches, *faults, *drafted)


@dataclass(frozen=True, slots=True)
class Timing:
    """One prompt with all its outputs, from arrival to end. Seconds and tokens.

        arrival | queue | prefill | decode: gap, gap, ... | end
                        ^ first scheduled ^ first token (first_token seconds after the arrival)

    accepted: tokens that came as drafts, without a gap of their own.
    A preemption leaves `queue` and makes `prefill` or a gap longer, whichever it interrupts.
    """

    first_token: float
    whole: float
    queue: float
    prefill: float
    decode: float
    gaps: Sequence[float]
    prompt_tokens: int
    cached_tokens: int
    output_lengths: Sequence[int]
    n: int
    max_tokens: int | None
    accepted: int = 0

    @property
    def mean_gap(self) -> float:
        """Per token, of which a step with drafts yields several; 0 for outputs of one token."""
        return self.decode / (len(self.gaps) + self.accepted) if self.gaps else 0.0

    @classmethod
    def of(cls, arrival: float, result: PromptResult) -> Timing | None:
        """None unless the prompt got its tokens and all outputs ended by themselves. arrival: at the server."""
        m: RequestMetrics | None = result.metrics
        ended = bool(result.finish_reasons) and "abort" not in result.finish_reasons
        if not ended or m is None or m.first_scheduled_time is None or m.first_token_time is None:
            return None
        last = m.token_times[-1] if m.token_times else m.first_token_time
        return cls(
            first_token=m.first_token_time - arrival,
            whole=(m.finished_time or last) - arrival,
            queue=m.first_scheduled_time - m.arrival_time,
            prefill=m.first_token_time - m.first_scheduled_time,
            decode=last - m.first_token_time,
            gaps=[after - before for before, after in pairwise(m.token_times)],
            prompt_tokens=result.prompt_tokens,
            cached_tokens=result.cached_tokens,
            output_lengths=[len(ids) for ids in result.output_token_ids.values()],
            n=result.params.n,
            max_tokens=result.params.max_tokens,
            accepted=m.num_accepted_tokens,
        )
