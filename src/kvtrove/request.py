"""What a caller asks and gets: SamplingParams, RequestOutput, CompletionOutput. Names and defaults are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

FinishReason = Literal["stop", "length", "abort"]
OutputKind = Literal["cumulative", "delta", "final_only"]
MAX_LOGPROBS = 100
MAX_STOPS = 64


class RequestError(ValueError):
    """A request that can never be served as it stands. `param` is the field to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    n: sequences returned, sampled in parallel from one prefill.
    beam_width: 0 samples; otherwise the number of beams, of which the best `n` are returned (best first).
    length_penalty: beams are ranked by cumulative_logprob / length ** length_penalty.
    temperature: 0 is greedy. top_k: 0 or -1 is off. min_p: keep tokens with p >= min_p * p_max.
    seed: makes the request reproducible whatever runs beside it; None draws one.
    stop: strings that end the text (not included unless include_stop_str_in_output).
    stop_token_ids: tokens that end the sequence beside the model's own end tokens (ignored with ignore_eos: only the latter).
    logprobs: top alternatives reported per output token beside the chosen one; prompt_logprobs likewise per prompt token.
    max_tokens: None runs to the end of the context. logit_bias: token id -> value added to its logit.
    output_kind: each step reports all so far ("cumulative"), the news ("delta"), or the request once it ends ("final_only").
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

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        for problem, param in self._problems():
            raise RequestError(f"{param}: {problem}", param)

    def _problems(self) -> list[tuple[str, str]]:
        def at_least(name: str, low: float) -> tuple[bool, str, str]:
            value = getattr(self, name)
            return value < low, f"{value} must be at least {low}", name

        def within(name: str, low: float, high: float) -> tuple[bool, str, str]:
            value = getattr(self, name)
            return not low <= value <= high, f"{value} must lie between {low} and {high}", name

        width = self.beam_width
        checks = [
            at_least("n", 1),
            (not 0 <= self.temperature < float("inf"), f"{self.temperature} must be a finite number of at least 0", "temperature"),
            (not 0 < self.top_p <= 1, f"{self.top_p} must be above 0 and at most 1", "top_p"),
            at_least("top_k", -1),
            within("min_p", 0, 1),
            (not 0 < self.repetition_penalty < float("inf"), f"{self.repetition_penalty} must be above 0", "repetition_penalty"),
            within("presence_penalty", -2, 2),
            within("frequency_penalty", -2, 2),
            (self.max_tokens is not None and self.max_tokens < 1, f"{self.max_tokens} must be at least 1", "max_tokens"),
            at_least("min_tokens", 0),
            (
                self.max_tokens is not None and self.min_tokens > self.max_tokens,
                f"{self.min_tokens} is more than max_tokens ({self.max_tokens})",
                "min_tokens",
            ),
            (not 0 <= (self.logprobs or 0) <= MAX_LOGPROBS, f"{self.logprobs} must lie between 0 and {MAX_LOGPROBS}", "logprobs"),
            (
                not 0 <= (self.prompt_logprobs or 0) <= MAX_LOGPROBS,
                f"{self.prompt_logprobs} must lie between 0 and {MAX_LOGPROBS}",
                "prompt_logprobs",
            ),
            (any(not s for s in self.stop or ()), "an empty string would stop at once; leave it out", "stop"),
            (len(self.stop or ()) > MAX_STOPS, f"{len(self.stop or ())} strings are more than the {MAX_STOPS} allowed", "stop"),
            (bool(self.stop) and not self.detokenize, "stop strings need detokenize=True", "stop"),
            at_least("beam_width", 0),
            (0 < width < self.n, f"{width} beams cannot return n={self.n} sequences; raise it to {self.n}", "beam_width"),
            (self.allowed_token_ids is not None and not self.allowed_token_ids, "an empty list allows no token", "allowed_token_ids"),
            (width > 0 and bool(self.stop), "beam search ends at stop tokens; leave stop strings out", "stop"),
            (
                self.output_kind not in get_args(OutputKind),
                f"{self.output_kind!r} is not one of {', '.join(get_args(OutputKind))}",
                "output_kind",
            ),
        ]
        return [(message, param) for wrong, message, param in checks if wrong]

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on which tokens came before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Logprob:
    """log p of a token under the model's own distribution (before penalties and temperature); rank 1 is the likeliest."""

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
    """Times in seconds of the engine's clock; None until it happened."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0
    reused_from: dict[str, int] = field(default_factory=dict)
