"""What passes between scheduler and runner: data only, no behaviour, nothing that either side changes afterwards.

One object of each of the first two is made per sequence and step, hundreds of times a step, so they are not frozen: a
frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.rows import RowOp
from kvtrove.request import EngineError, PoolingParams, RequestError, SamplingParams, TokenLogprobs

NO_TOKENS: array[int] = array("i")
NO_ENDS: frozenset[int] = frozenset()


@dataclass(slots=True)
class SampleSpec:
    """Draw a token after this sequence's last computed token.

    seed, streams: one token is drawn per stream; draw number `position` of stream s of a request depends on
        (seed, s, position) alone, so results do not depend on the batch, on preemption or on forks.
    position: index of the drawn token in the output. prompt, output: token ids so far, for penalties.
    banned: token ids that may not be drawn (end tokens before min_tokens); the same at every draw that has some.
    candidates: > 0 asks for that many best tokens and draws none (beams).
    allowed: the only tokens that may be drawn, as `Guide.mask` packs them; None is all.
    """

    params: SamplingParams
    seed: int
    streams: tuple[int, ...]
    position: int
    prompt: array[int]
    output: array[int]
    banned: Collection[int] = NO_ENDS
    candidates: int = 0
    allowed: NDArray[np.int32] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """The runner's own, the same at every draw of a request: what it derives from `params` and `banned` only once."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Make a vector of a prompt. carry: what the step before returned; it counts only behind the first tokens.

    last: the prompt ends with the tokens of this step.
    """

    params: PoolingParams
    carry: NDArray[np.float64] | None
    last: bool


@dataclass(slots=True)
class ScheduledSequence:
    """Compute K/V of `tokens` at places start, start + 1, ... of the block tables.

    shift: what their positions are beyond these places. packed: rows with which the tables begin that are packed.
    observe: report the queries of the last so many of them.

    block_ids: per group the block table, -1 where no block is held.
    seat: what it has beside its blocks (`kvtrove.kv.seats`). pool: it draws nothing but becomes a vector.
    adapter: digest of the adapter that computes it, empty for the model alone.
    sample: draw after the last token that is not a draft. verify: the last len(verify) tokens are drafts; draw after
        each of them as if all up to it had been drawn.
    """

    seq_id: int
    tokens: array[int]
    start: int
    block_ids: tuple[NDArray[np.int32], ...]
    sample: SampleSpec | None = None
    verify: tuple[SampleSpec, ...] = ()
    seat: int = 0
    prompt_logprobs: int | None = None
    prompt_targets: array[int] = field(default_factory=lambda: NO_TOKENS)
    """With prompt_logprobs: the token that follows each of `tokens`, as far as it is a prompt token."""
    pool: PoolSpec | None = None
    shift: int = 0
    packed: int = 0
    observe: int = 0
    adapter: bytes = b""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. `ops`: what to do to rows of the cache, in this order, before anything is computed."""

    sequences: list[ScheduledSequence]
    ops: Sequence[RowOp] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)

    @property
    def num_decodes(self) -> int:
        """Tokens of sequences that compute one, and of drafts behind it."""
        return sum(len(s.tokens) for s in self.sequences if len(s.tokens) - len(s.verify) == 1)

    @property
    def num_listed(self) -> int:
        """Prompt tokens whose log-probabilities are reported."""
        return sum(len(s.tokens) for s in self.sequences if s.prompt_logprobs is not None)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token, or one candidate of a beam. logprobs: it and the top alternatives, when they were asked for."""

    token_id: int
    logprob: float
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """samples: one per stream, or the candidates, best first. prompt_logprobs: one entry per prompt target.

    error: why there is nothing of either; it ends the request.
    accepted: as many as drafts were right: what was drawn after each of these, in order.
    pooled: the vector of a prompt that has come to its end. pool_carry: for the step that goes on with it.
    """

    samples: list[SampledToken]
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: RequestError | EngineError | None = None
    accepted: list[SampledToken] = field(default_factory=list)
    pooled: NDArray[np.float32] | None = None
    pool_carry: NDArray[np.float64] | None = None


def accept(drafts: array[int], first: SampledToken, after: list[SampledToken]) -> list[SampledToken]:
    """Of `after`, drawn after each draft, what follows the drafts that are the tokens drawn at their places.

    `after` ends early where nothing could be drawn: the next step finds out again.
    """
    drawn = [first, *after]
    right = 0
    while right < len(after) and drawn[right].token_id == drafts[right]:
        right += 1
    return after[:right]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """seq_id -> result, for the sequences that sampled or report prompt logprobs.

    observed: seq_id -> of every layer the queries that were asked for, the runner's own.
    """

    results: dict[int, SequenceResult]
    observed: Mapping[int, Any] = field(default_factory=dict)
