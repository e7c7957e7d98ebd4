"""What a simulation found: one record per request, and the figures that are asked of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Times in seconds. cached: prompt tokens that were not computed. tpot: None for answers of one token."""

    index: int
    session: str | None
    replica: int
    prompt_tokens: int
    output_tokens: int
    cached: int
    arrival: float
    ttft: float
    tpot: float | None
    finished: float
    preemptions: int


@dataclass(frozen=True)
class SimulationResult:
    """rejected, rejected_tokens: requests that the cache cannot hold even alone, and their prompts.

    duration: seconds from the first arrival to the last token.
    """

    requests: Sequence[RequestResult]
    rejected: int
    rejected_tokens: int
    evictions: int
    steps: int
    duration: float
    kv_tokens: int | None
    ideal_hit_ratio: float
    num_users: int

    @property
    def token_hit_ratio(self) -> float:
        """Share of all prompt tokens that the prefix cache served; those of refused requests are misses."""
        prompts = sum(r.prompt_tokens for r in self.requests) + self.rejected_tokens
        return sum(r.cached for r in self.requests) / prompts if prompts else 0.0

    @property
    def preemptions(self) -> int:
        return sum(r.preemptions for r in self.requests)

    def goodput(self, ttft: float | None, tpot: float | None) -> float:
        """Requests per second that met both limits (DistServe, arXiv 2401.09670, in its measured form)."""
        return self.attainment(ttft, tpot) * len(self.requests) / self.duration if self.duration else 0.0

    def attainment(self, ttft: float | None, tpot: float | None) -> float:
        """Share of the requests that met both limits."""
        met = sum(
            (ttft is None or r.ttft <= ttft) and (tpot is None or r.tpot is None or r.tpot <= tpot)
            for r in self.requests
        )
        return met / len(self.requests) if self.requests else 0.0

    def hit_ratio_by_session(self) -> dict[str, float]:
        """Session -> share of its prompt tokens that were served from the cache."""
        cached: dict[str, int] = defaultdict(int)
        prompts: dict[str, int] = defaultdict(int)
        for r in self.requests:
            if r.session is not None:
                cached[r.session] += r.cached
                prompts[r.session] += r.prompt_tokens
        return {session: cached[session] / tokens for session, tokens in prompts.items()}

    def as_json(self, slo_ttft: float | None = None, slo_tpot: float | None = None) -> dict[str, Any]:
        """Figures without the requests."""
        by_session = self.hit_ratio_by_session()
        return {
            "kv_tokens": self.kv_tokens,
            "kv_tokens_per_user": None if self.kv_tokens is None else self.kv_tokens // self.num_users,
            "num_requests": len(self.requests),
            "num_users": self.num_users,
            "token_hit_ratio": self.token_hit_ratio,
            "ideal_hit_ratio": self.ideal_hit_ratio,
            "ttft": distribution(r.ttft for r in self.requests),
            "tpot": distribution(r.tpot for r in self.requests if r.tpot is not None),
            "e2e": distribution(r.finished - r.arrival for r in self.requests),
            "goodput": self.goodput(slo_ttft, slo_tpot),
            "slo_attainment": self.attainment(slo_ttft, slo_tpot),
            "throughput": len(self.requests) / self.duration if self.duration else 0.0,
            "preemptions": self.preemptions,
            "preempted_requests": sum(r.preemptions > 0 for r in self.requests),
            "rejected": self.rejected,
            "evictions": self.evictions,
            "steps": self.steps,
            "duration": self.duration,
            "session_hit_ratio": distribution(by_session.values()) if by_session else None,
        }


def distribution(values: Iterable[float]) -> dict[str, float]:
    """Mean, largest and percentiles: the p-th is the smallest value that p % of all do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return {}
    figures = {f"p{p}": ordered[max(0, ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), **figures, "max": ordered[-1]}
