"""The scheduler's own state of a request: one Request, and the sequences that grow from its prompt."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.loads import Load
from kvtrove.kv.snapshot import Tail
from kvtrove.kv.table import SequenceKV
from kvtrove.request import (
    EngineError,
    FinishReason,
    Guide,
    PoolingParams,
    RequestError,
    RequestMetrics,
    SamplingParams,
    TokenLogprobs,
)
from kvtrove.scheduler.output import SampledToken, SampleSpec
from kvtrove.scheduler.waiting import Wait


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and output of one continuation, and its place in the cache.

        tokens   | prompt ...................... | output ........ |
                 0        kv.num_computed        num_prompt        len(tokens)

    The K/V of the last token are computed in the step that draws the next one, so `num_uncomputed` is 1 while decoding.
    """

    id: int
    request: Request
    index: int
    tokens: array[int]
    kv: SequenceKV
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    waits_for: Wait | None = None
    """Nothing is done for a sequence in the queue before this is over."""
    load: Load | None = None
    """What was, or is being, loaded for it since it queued last: at most one attempt."""
    tail: Tail | None = None
    """What a checkpoint holds behind the full blocks: taken over when it is admitted with all of those."""
    guide: Guide | None = None
    observed: list[Any] = field(default_factory=list)
    """Queries of its prompt's end, as the runner reported them (`ModelOutput.observed`), until it is compacted."""
    draft_right: float = 0.0
    draft_tried: float = 0.0
    """Drafts that were checked lately, and how many of them were right; old ones count less."""
    sums: list[float] | None = None
    """cumulative_logprob after each token of the last step that checked drafts."""
    steady_spec: SampleSpec | None = None
    """How to draw, once that depends on nothing but the position any more (`work.sample_spec`)."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.kv.num_computed

    @property
    def prefill_need(self) -> int:
        """Tokens that a prompt may catch up with; the last one of a preempted beam waits for its siblings."""
        return self.num_uncomputed - (self.request.beam and self.num_output > 0)

    @property
    def reusable(self) -> int:
        """Tokens that need not be computed when their K/V are cached: none where something else of them is wanted."""
        request = self.request
        reads_all = request.pooling is not None and request.pooling.reads_all
        if reads_all or request.wants_prompt_logprobs:
            return 0
        if request.compactor is None:
            return len(self.tokens) - 1
        # Blocks behind a compaction are not what it left; queries that it looks at are computed; and a step ends there.
        first = request.compactor.due(len(request.prompt), 0)
        return max(0, min(len(self.tokens) - 1, first - max(1, request.compactor.window)))

    @property
    def until_pause(self) -> int:
        """Tokens that may be computed before it gives up some, or takes some over."""
        return min(self.kv.compacts_at, self.kv.moves_at) - self.kv.num_computed

    @property
    def seats(self) -> int:
        """Seats to reserve: until its first output token, those of all sequences that will fork from this one."""
        return self.request.width if self.num_output == 0 else 1

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def output(self) -> array[int]:
        return self.tokens[len(self.request.prompt) :]

    def append(self, token: SampledToken) -> None:
        self.tokens.append(token.token_id)
        self.cumulative_logprob += token.logprob
        if self.sums is not None:
            self.sums.append(self.cumulative_logprob)
        if self.guide is not None:
            self.guide.accept(token.token_id)
        if self.logprobs is not None and token.logprobs is not None:
            self.logprobs.append(token.logprobs)

    def cut(self, num_output: int) -> int:
        """Take back what the last step appended behind `num_output` tokens; returns how many those were."""
        surplus = self.num_output - num_output
        if surplus:
            assert self.sums is not None, "only a step that checked drafts appends several tokens"
            del self.tokens[-surplus:]
            self.cumulative_logprob = self.sums[-1 - surplus]
            if self.logprobs is not None:
                del self.logprobs[num_output:]
        return surplus

    def inherit(self, parent: Sequence) -> None:
        """Take over what belongs to the parent's tokens."""
        self.cumulative_logprob = parent.cumulative_logprob
        self.logprobs = None if parent.logprobs is None else list(parent.logprobs)
        self.guide = None if parent.guide is None else parent.guide.copy()
        self.observed = [*parent.observed]

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        self.finish_reason, self.stop_reason = reason, stop_reason


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and all that grows from it.

    sequences: one until the prompt is computed, then `n` or the live beams. completed: hypotheses of a beam search.
    """

    id: str
    arrival: int
    prompt: array[int]
    params: SamplingParams
    seed: int
    salt: bytes
    """Of the tenant, and the adapter's digest before it (`kv.chain.scoped`)."""
    max_len: int
    end_token_ids: frozenset[int]
    """Model's end tokens (unless ignore_eos) and stop_token_ids."""
    metrics: RequestMetrics
    guide: Guide | None = None
    """Belongs to the first sequence; the others fork from it."""
    borders: Collection[int] = ()
    session: str = ""
    """Lengths of the prompt at which a message ends: where other prompts are likely to go on."""
    sequences: list[Sequence] = field(default_factory=list)
    completed: list[Sequence] = field(default_factory=list)
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    compactor: Compactor | None = None
    """What its sequences give up of their tokens; None keeps all."""
    exact: bool = False
    """It goes on behind no prefix that was compacted for all, and takes over no text that moved."""
    pooling: PoolingParams | None = None
    """The prompt becomes a vector, and nothing is drawn."""
    pooled: NDArray[np.float32] | None = None
    pool_carry: NDArray[np.float64] | None = None
    """What the last step made of the prompt so far (`SequenceResult.pool_carry`)."""
    adapter: bytes = b""
    """Its digest."""
    error: RequestError | EngineError | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """The runner's (`SampleSpec.notes`)."""

    @property
    def beam(self) -> bool:
        return self.params.beam_width > 0

    @property
    def width(self) -> int:
        """Sequences that this request runs at once, from its first output token on."""
        return max(self.params.n, self.params.beam_width)

    @property
    def unfinished(self) -> list[Sequence]:
        return [s for s in self.sequences if s.finish_reason is None]

    @property
    def finished(self) -> bool:
        return all(s.finish_reason is not None for s in self.sequences)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Positions are still to be reported, so their logits must be computed: the prefix cache cannot help."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)
