"""What a caller asks and gets: SamplingParams, RequestOutput, CompletionOutput. Names and defaults are vLLM's."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvtrove.kv.reasons import Explanation

FinishReason = Literal["stop", "length", "abort", "error"]
"""error: the grammar of the request cannot go on; `stop_reason` says why, and the text is not in the grammar."""

OutputKind = Literal["cumulative", "delta", "final_only"]
MAX_LOGPROBS = 100
MAX_STOPS = 64
MAX_STOP_CHARS = 4096
MAX_TOKEN_IDS = 300_000
"""Entries of a list of token ids or of logit_bias, repeats included: more than any vocabulary has tokens."""
INF = float("inf")
INT32 = 2**31 - 1


@dataclass(frozen=True)
class Bound:
    """What a number may be: low <= x <= high, or low < x where `above`. whole: an int."""

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def problem(self, value: object) -> str | None:
        """Why `value` is not such a number, or None. NaN lies outside of every bound."""
        if not isinstance(value, int if self.whole else int | float):
            return f"{_short(value)} must be a {'whole ' if isinstance(value, float) else ''}number"
        low = self.low < value if self.above else self.low <= value
        return None if low and value <= self.high else f"{_short(value)} must {self}"

    def __str__(self) -> str:
        if self.above:
            return f"be above {self.low} and at most {self.high}"
        return f"lie between {self.low} and {self.high}"


BOUNDS: dict[str, Bound] = {
    "n": Bound(1, INT32, whole=True),
    "temperature": Bound(0, 100),
    "top_p": Bound(0, 1, above=True),
    "top_k": Bound(-1, INT32, whole=True),
    "min_p": Bound(0, 1),
    "repetition_penalty": Bound(0.01, 100),
    "presence_penalty": Bound(-2, 2),
    "frequency_penalty": Bound(-2, 2),
    "seed": Bound(-(2**63), 2**64 - 1, whole=True),
    "max_tokens": Bound(1, INT32, whole=True),
    "min_tokens": Bound(0, INT32, whole=True),
    "logprobs": Bound(0, MAX_LOGPROBS, whole=True),
    "prompt_logprobs": Bound(0, MAX_LOGPROBS, whole=True),
    "beam_width": Bound(0, INT32, whole=True),
    "length_penalty": Bound(-10, 10),
    "n_keep": Bound(-1, INT32, whole=True),
}
"""Fields of SamplingParams that are numbers. Within these bounds no step of the arithmetic overflows: logits, float32,
are scaled by at most 100 / 1e-5, and 2**31 tokens to the power of 10 are a double.
"""
_OPTIONAL = frozenset({"seed", "max_tokens", "logprobs", "prompt_logprobs", "n_keep"})
BIAS = Bound(-100, 100)
"""Values of logit_bias, as OpenAI has them: 100 forces a token and -100 bans it."""


class RequestError(ValueError):
    """A request that can never be served as it stands. `param` is the field to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class SoftPin:
    """A prefix of a request that leaves the cache last, until `seconds` after the request has ended.

    num_tokens: of the prompt; None is all of it, and the answer. behind: messages of the prompt that follow the prefix,
    from which an engine reads num_tokens where it knows the token that ends a message.
    """

    seconds: float
    num_tokens: int | None = None
    behind: int | None = None

    @property
    def priority(self) -> int:
        """1, or 2 of what is meant to stay for an hour or longer: blocks of a lower one leave first."""
        return 2 if self.seconds >= 3600 else 1


class EngineError(RuntimeError):
    """A request that was accepted and cannot be finished, through no fault of its sender's. The message is for them."""


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

    @property
    def problem(self) -> str | None:
        """Why the output is not a text of the grammar and will never be: a token that it does not allow was accepted,
        or it has become too complex. None while all is well.
        """
        ...

    def copy(self) -> Guide:
        """A guide in the same state, for a fork of the sequence."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Numbers lie within `BOUNDS`; RequestError names the field and the bound.

    n: sequences returned, sampled in parallel from one prefill.
    beam_width: 0 samples; otherwise the number of beams, of which the best `n` are returned (best first).
    length_penalty: beams are ranked by cumulative_logprob / length ** length_penalty.
    temperature: 0 is greedy. top_k: 0 or -1 is off. min_p: keep tokens with p >= min_p * p_max.
    seed: makes the request reproducible whatever runs beside it; None draws one.
    stop: strings that end the text (not included unless include_stop_str_in_output).
    stop_token_ids: tokens that end the sequence beside the model's own end tokens; ignore_eos ignores only the latter.
        Ids that the model cannot produce never end anything: clients send those of other models.
    logprobs: top alternatives reported per output token beside the chosen one; prompt_logprobs: per prompt token.
    max_tokens: None runs to the end of the context. logit_bias: token id -> value added to its logit (`BIAS`).
    allowed_token_ids: the only tokens that may be drawn.
    output_kind: each step reports all so far ("cumulative") or the news ("delta"), or only the end does ("final_only").
    speculation: False drafts nothing for this request; True insists on an engine that drafts. Tokens are the same.
    n_keep: with context_shift, tokens at the beginning that stay when the context is full; -1 is the prompt.
    exact_prefix: nothing approximate is reused: no prefix that was compacted for all, no text that moved.
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
    shown_token_ids: tuple[int, ...] = ()
    detokenize: bool = True
    output_kind: OutputKind = "cumulative"
    speculation: bool | None = None
    n_keep: int | None = None
    exact_prefix: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        for param, problem in self._problems():
            raise RequestError(f"{param}: {problem}", param)
        object.__setattr__(self, "stop_token_ids", tuple(dict.fromkeys(self.stop_token_ids or ())))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(dict.fromkeys(self.allowed_token_ids)))

    def _problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it); the first ends the search, so later ones may rely on it."""
        for name, bound in BOUNDS.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and (problem := bound.problem(value)):
                yield name, problem
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            yield "min_tokens", f"{self.min_tokens} is more than max_tokens ({self.max_tokens})"
        if 0 < self.beam_width < self.n:
            yield "beam_width", f"{self.beam_width} beams cannot return n={self.n} sequences; raise it to {self.n}"
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            yield from ((name, problem) for problem in _token_id_problems(getattr(self, name) or ()))
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            yield "allowed_token_ids", "an empty list allows no token"
        if self.speculation not in (None, True, False):
            yield "speculation", f"{self.speculation!r} is not one of true, false"
        if problem := _flag_problem(self.exact_prefix):
            yield "exact_prefix", problem
        yield from (("logit_bias", problem) for problem in self._bias_problems())
        if self.output_kind not in get_args(OutputKind):
            yield "output_kind", f"{self.output_kind!r} is not one of {', '.join(get_args(OutputKind))}"
        yield from (("stop", problem) for problem in self._stop_problems())

    def _bias_problems(self) -> Iterator[str]:
        for token_id, value in (self.logit_bias or {}).items():
            if problem := BIAS.problem(value):
                yield f"of token {token_id}, {problem}"

    def _stop_problems(self) -> Iterator[str]:
        stop = self.stop or ()
        if not all(isinstance(one, str) for one in stop):
            yield "every stop must be a string"
        if not all(stop):
            yield "an empty string would stop at once; leave it out"
        if len(stop) > MAX_STOPS:
            yield f"{len(stop)} strings are more than the {MAX_STOPS} allowed"
        if any(len(one) > MAX_STOP_CHARS for one in stop):
            yield f"a string has more than {MAX_STOP_CHARS} characters"
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


def _token_id_problems(ids: Collection[object]) -> Iterator[str]:
    if len(ids) > MAX_TOKEN_IDS:
        yield f"{len(ids)} token ids are more than the {MAX_TOKEN_IDS} allowed"
    for wrong in (i for i in ids if not isinstance(i, int)):
        yield f"{_short(wrong)} is not a token id, which is a whole number"


def _flag_problem(value: object) -> str | None:
    return None if isinstance(value, bool) else f"{_short(value)} is not one of true, false"


def _short(value: object) -> str:
    """For messages: a number may have thousands of digits, and Python refuses to print those."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.80}"


POOLINGS = ("last", "mean", "cls")


@dataclass(frozen=True)
class PoolingParams:
    """How a prompt becomes a vector instead of an answer. RequestError names the field.

    pooling: the hidden state of the last token, the mean over all, or that of the first (cls). Only "last" can reuse
        cached blocks: the others read hidden states of tokens that are not computed again.
    normalize: to length 1. dimensions: only so many, the first ones, before that (Matryoshka, arXiv 2205.13147).
    token_ids: not hidden states but the logits of these tokens behind the prompt, float32, as they are.
    exact_prefix: as that of SamplingParams.
    """

    pooling: str = "last"
    normalize: bool = True
    dimensions: int | None = None
    token_ids: tuple[int, ...] = ()
    exact_prefix: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise RequestError(f"pooling: {self.pooling!r:.80} is not one of {', '.join(POOLINGS)}", "pooling")
        bound = Bound(1, INT32, whole=True)
        if self.dimensions is not None and (problem := bound.problem(self.dimensions)):
            raise RequestError(f"dimensions: {problem}", "dimensions")
        if self.token_ids and self.pooling != "last":
            raise RequestError("pooling: logits are those behind the last token; leave it at 'last'", "pooling")
        if problem := _flag_problem(self.exact_prefix):
            raise RequestError(f"exact_prefix: {problem}", "exact_prefix")

    @property
    def reads_all(self) -> bool:
        """Hidden states of more than the last token are needed."""
        return self.pooling != "last"


POOLED = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, output_kind="final_only")
"""The sampling parameters of a request that draws nothing."""


def sampling_of(params: SamplingParams | PoolingParams) -> SamplingParams:
    """How tokens would be drawn for it."""
    return params if isinstance(params, SamplingParams) else POOLED


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
    """A request so far. `num_cached_tokens` of the prompt were not computed but reused.

    pooled: the vector of a request with PoolingParams, float32.
    error: why it ended without an answer: RequestError (its rules leave no token) or EngineError.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: RequestMetrics | None = None
    pooled: NDArray[np.float32] | None = None
    error: RequestError | EngineError | None = None


@dataclass(frozen=True, slots=True)
class PrefixLoad:
    """Prompt tokens that came from a tier, in `seconds`. instead: seconds that computing them takes, where known."""

    tokens: int
    tier: str
    seconds: float
    instead: float | None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds of the engine's clock; None until it happened.

    token_times: of every step that drew for the request. reused_from: prompt tokens reused, by tier of the cache.
    explanation: why no more of the prompt was reused when it was first admitted. load: what was loaded for it then.
    num_continued_tokens: of the output, those that a checkpoint had. num_dropped_tokens: that the cache gave up of a
    sequence at most, so that what follows could not read them.
    soft_pins: what leaves the cache last. num_moved_tokens: of the prompt, those taken over from other positions.
    tier_reason: why no tier brought more of the prompt, in words.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_continued_tokens: int = 0
    num_dropped_tokens: int = 0
    num_moved_tokens: int = 0
    soft_pins: Sequence[SoftPin] = ()
    tier_reason: str | None = None
    token_times: array[float] = field(default_factory=lambda: array("d"))
    reused_from: dict[str, int] = field(default_factory=dict)
    explanation: Explanation | None = None
    load: PrefixLoad | None = None
