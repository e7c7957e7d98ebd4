"""How much a step may take, and what the scheduler counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerLimits:
    """max_num_batched_tokens: budget of a step. max_concurrent_prefills: prompts that share one too small for all."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_concurrent_prefills: int = 4


@dataclass(frozen=True)
class SchedulerStats:
    """num_prompt_tokens: of prompts that have got their first token. num_generation_tokens: drawn since the start."""

    num_running: int
    num_waiting: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generation_tokens: int
