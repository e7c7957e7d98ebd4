"""One vocabulary for all traces."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

NO_BLOCKS: array[int] = array("i")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """arrival: seconds since the trace began (of a session: since the session began). Lengths in tokens.

    blocks: ids of the prompt's leading blocks of `Trace.block_size` tokens. An id stands for the block and everything
    before it, so two prompts share exactly the leading blocks whose ids are equal. It may be shorter than the prompt:
    the rest is shared with nobody.
    think_time: seconds between the answer before and this request, in a session.
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int
    blocks: array[int] = field(default_factory=lambda: NO_BLOCKS)
    session: str | None = None
    think_time: float = 0.0


@dataclass(frozen=True)
class Trace:
    """requests: by arrival; those of a session in order. block_size: tokens per id; 0 when the trace has no ids."""

    name: str
    block_size: int
    requests: Sequence[TraceRequest]

    @property
    def has_sessions(self) -> bool:
        return any(request.session is not None for request in self.requests)


@dataclass(frozen=True)
class TraceSummary:
    """rate: requests per second. ideal_hit_ratio: share of prompt tokens that a cache without limits would serve."""

    num_requests: int
    mean_prompt: float
    mean_output: float
    max_context: int
    rate: float
    ideal_hit_ratio: float


def summarise(trace: Trace) -> TraceSummary:
    """Means over all requests, and what could be reused at best (all requests in their order, every block kept)."""
    requests = trace.requests
    prompts = sum(r.prompt_tokens for r in requests)
    span = max(r.arrival for r in requests) - min(r.arrival for r in requests)
    return TraceSummary(
        num_requests=len(requests),
        mean_prompt=prompts / len(requests),
        mean_output=sum(r.output_tokens for r in requests) / len(requests),
        max_context=max(r.prompt_tokens + r.output_tokens for r in requests),
        rate=len(requests) / span if span > 0 else float(len(requests)),
        ideal_hit_ratio=_reusable(trace) / prompts,
    )


def _reusable(trace: Trace) -> int:
    seen: set[int] = set()
    tokens = 0
    for request in trace.requests:
        usable = (request.prompt_tokens - 1) // trace.block_size if trace.block_size else 0
        known = takewhile(seen.__contains__, request.blocks[:usable])
        tokens += trace.block_size * sum(1 for _ in known)
        seen.update(request.blocks[: request.prompt_tokens // trace.block_size] if trace.block_size else ())
    return tokens
