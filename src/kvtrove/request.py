"""What a caller asks and gets: SamplingParams, RequestOutput, CompletionOutput. Names and defaults are vLLM's."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvtrove.kv.explain import Explanation

FinishReason = Literal["stop", "length", "abort"]
OutputKind = Literal["cumulative", "delta", "final_only"]
MAX_LOGPROBS = 100
MAX_STOPS = 64
INF = float("inf")
_WHOLE = frozenset({"n", "max_tokens", "min_tokens", "top_k", "logprobs", "prompt_logprobs", "beam_width"})
_BOUNDS: dict[str, tuple[float, float]] = {
    "n": (1, INF),
    "max_tokens": (1, INF),
    "min_tokens": (0, INF),
    "top_k": (-1, INF),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "beam_width": (0, INF),
}


class RequestError(ValueError):
    """A request that can never be served as it stands. `param` is the field to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Guide(Protocol):
    """Holds one output sequence to a grammar: which tokens may follow what it has accepted."""

    def mask(self) -> NDArray[np.int32]:
        """[ceil(vocabulary / 32)], a new array: bit i % 32 of word i // 32 is set where token i may follow.

        Never empty: where the grammar is complete it holds the end tokens.
        """
        ...

    def accept(self, token_id: int) -> None:
        """The sequence goes on with this token."""
        ...

    def copy(self) -> Guide:
        """A guide in the same state, for a fork of the sequence."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    n: sequences returned, sampled in parallel from one prefill.
    beam_width: 0 samples; otherwise the number of beams, of which the best `n` are returned (best first).
    length_penalty: beams are ranked by cumulative_logprob / length ** length_penalty.
    temperature: 0 is greedy. top_k: 0 or -1 is off. min_p: keep tokens with p >= min_p * p_max.
    seed: makes the request reproducible whatever runs beside it; None draws one.
    stop: strings that end the text (not included unless include_stop_str_in_output).
    stop_token_ids: tokens that end the sequence beside the model's own end tokens; ignore_eos ignores only the latter.
    logprobs: top alternatives reported per output token beside the chosen one; prompt_logprobs: per prompt token.
    max_tokens: None runs to the end of the context. logit_bias: token id -> value added to its logit.
    output_kind: each step reports all so far ("cumulative") or the news ("delta"), or only the end does ("final_only").
    speculation: False drafts nothing for this request; True insists on an engine that drafts. Tokens are the same.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    beam_width: int = 0
    length_penalty: float = 1.0
    skip_special_tokens: bool = True
    detokenize: bool = True
    output_kind: OutputKind = "cumulative"
    speculation: bool | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        for param, problem in self._problems():
            raise RequestError(f"{param}: {problem}", param)

    def _problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it)."""
        for name in (*_BOUNDS, "temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            whole = name in _WHOLE and isinstance(value, float)
            if not isinstance(value, int | float | None) or whole:
                yield name, f"{value!r} must be a {'whole ' if whole else ''}number"
                return  # what follows compares numbers
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                yield (
                    name,
                    f"{value} must " + (f"be at least {low}" if high == INF else f"lie between {low} and {high}"),
                )
        if not 0 <= self.temperature < INF:
            yield "temperature", f"{self.temperature} must be a finite number of at least 0"
        if not 0 < self.top_p <= 1:
            yield "top_p", f"{self.top_p} must be above 0 and at most 1"
        if not 0 < self.repetition_penalty < INF:
            yield "repetition_penalty", f"{self.repetition_penalty} must be above 0"
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            yield "min_tokens", f"{self.min_tokens} is more than max_tokens ({self.max_tokens})"
        if 0 < self.beam_width < self.n:
            yield "beam_width", f"{self.beam_width} beams cannot return n={self.n} sequences; raise it to {self.n}"
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            yield "allowed_token_ids", "an empty list allows no token"
        if self.speculation not in (None, True, False):
            yield "speculation", f"{self.speculation!r} is not one of true, false"
        if self.output_kind not in get_args(OutputKind):
            yield "output_kind", f"{self.output_kind!r} is not one of {', '.join(get_args(OutputKind))}"
        yield from (("stop", problem) for problem in self._stop_problems())

    def _stop_problems(self) -> Iterator[str]:
        stop = self.stop or ()
        if not all(stop):
            yield "an empty string would stop at once; leave it out"
        if len(stop) > MAX_STOPS:
            yield f"{len(stop)} strings are more than the {MAX_STOPS} allowed"
        if stop and not self.detokenize:
            yield "stop strings need detokenize=True"
        if stop and self.beam_width > 0:
            yield "beam search ends at stop tokens; leave stop strings out"

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on which tokens came before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Logprob:
    """log p of a token under the model's own distribution, before penalties and temperature. Rank 1 is likeliest."""

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One sequence. `logprobs[i]` maps the chosen and the top tokens at output position i."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request so far. `num_cached_tokens` of the prompt were not computed but reused."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: RequestMetrics | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds of the engine's clock; None until it happened.

    token_times: of every step that drew for the request. reused_from: prompt tokens reused, by tier of the cache.
    explanation: why no more of the prompt was reused when it was first admitted.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    token_times: array[float] = field(default_factory=lambda: array("d"))
    reused_from: dict[str, int] = field(default_factory=dict)
    explanation: Explanation | None = None
