"""How much a step may take, and what the scheduler counts."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.config import EngineConfig


@dataclass(frozen=True)
class SchedulerLimits:
    """max_num_batched_tokens: budget of a step. max_concurrent_prefills: prompts that share one too small for all.

    cache_reuse: least number of tokens that are taken over from other positions (`kv.moved`); 0: never.
    """

    max_num_seqs: int = EngineConfig.max_num_seqs
    max_num_batched_tokens: int = EngineConfig.max_num_batched_tokens
    max_concurrent_prefills: int = EngineConfig.max_concurrent_prefills
    cache_reuse: int = EngineConfig.cache_reuse


@dataclass(frozen=True)
class SchedulerStats:
    """num_prompt_tokens: of prompts that have got their first token. num_generation_tokens: drawn since the start."""

    num_running: int
    num_waiting: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generation_tokens: int
