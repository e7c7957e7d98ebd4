"""What a load test asks for: server, load, workload and goal. Checked once, when the dataclasses are filled.

Durations are seconds and are written the way people write them: ``"50ms"``, ``"1s"``, ``"2m"`` or a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kvtrove.config import ConfigError, parse_tokens

ENDPOINTS = ("chat", "completions")
ARRIVALS = ("poisson", "constant", "burst")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str | float, what: str) -> float:
    """Seconds of ``"50ms"``, ``"1.5s"``, ``"2m"`` or a plain number; ConfigError for anything else or below zero."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|min|h|)\s*", str(text).lower())
    if not found:
        raise ConfigError(f"{what}: cannot read {text!r} as a duration; write for example 50ms, 1s or 2m")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True)
class Span:
    """A number of tokens, or a range from which one is drawn evenly (both ends belong to it)."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str | int, what: str) -> Span:
        """``512``, ``"2k"`` or ``"256:1024"``."""
        ends = str(text).split(":")
        if len(ends) > 2:
            raise ConfigError(f"{what}: cannot read {text!r}; write a number of tokens or a range such as 256:1024")
        low, high = parse_tokens(ends[0], what), parse_tokens(ends[-1], what)
        if low > high:
            raise ConfigError(f"{what}: the range {text!r} is upside down; write {high}:{low}")
        return cls(low, high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: {value!r} must be larger than zero")


@dataclass(frozen=True)
class Target:
    """The server under test.

    url: its root (http://host:8000) or its API (http://host:8000/v1). model: None takes the first that it offers.
    timeout: seconds after which the client abandons a request. extra_body: more fields for every request.
    ignore_eos: ask for exactly as many tokens as the workload says, where the server can do that.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    endpoint: str = "chat"
    timeout: float = 600.0
    ignore_eos: bool = True
    temperature: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url: {self.url!r} is no web address; write for example http://127.0.0.1:8000")
        if parts.username or parts.password:
            raise ConfigError(
                "url: it would show up in results with the name and password in it; give --api-key instead"
            )
        path = parts.path.rstrip("/") or "/v1"
        object.__setattr__(self, "url", f"{parts.scheme}://{parts.netloc}{path}")
        if self.endpoint not in ENDPOINTS:
            raise ConfigError(f"endpoint: {self.endpoint!r} is not one of {', '.join(ENDPOINTS)}")
        _positive(self, "timeout")


@dataclass(frozen=True)
class Load:
    """When requests come. One of `rate` (open loop), `concurrency` (closed loop) or the times of a trace.

    rate: arrivals per second; an arrival is a conversation, which is one request unless the workload has turns.
    arrivals: gaps between them: "poisson", "constant", or "burst" (gamma distributed with shape `burstiness`).
    concurrency: this many conversations at any time; the next begins when one ends.
    requests, duration: how many arrivals, or for how many seconds; None is the workload's own end.
    warmup: the first arrivals, sent like the others but not measured.
    """

    rate: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 0.25
    concurrency: int | None = None
    requests: int | None = None
    duration: float | None = None
    warmup: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise ConfigError(f"arrivals: {self.arrivals!r} is not one of {', '.join(ARRIVALS)}")
        if self.rate is not None and self.concurrency is not None:
            raise ConfigError(
                "rate and concurrency exclude each other: rate sends whether or not answers come (open loop), "
                "concurrency waits for them (closed loop)"
            )
        _positive(self, "rate", "burstiness", "concurrency", "requests", "duration")
        if self.warmup < 0:
            raise ConfigError(f"warmup: {self.warmup} must not be negative")
        if self.requests is not None and self.warmup >= self.requests:
            raise ConfigError(
                f"warmup: nothing is left to measure of {self.requests} requests after {self.warmup}; "
                f"give requests {self.requests + self.warmup}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} must not be negative")

    def __str__(self) -> str:
        if self.rate is not None:
            kind = {"burst": f"bursts of shape {self.burstiness:g}"}.get(self.arrivals, self.arrivals)
            return f"{self.rate:g} arrivals/s ({kind})"
        if self.concurrency is not None:
            return f"{self.concurrency} at a time"
        return "at the times of the trace"


@dataclass(frozen=True)
class Workload:
    """What is asked: synthetic text, one's own prompts, or a trace.

    input_tokens: of what the user says per turn. output_tokens: of the answer; None leaves it to file or trace.
    prefix_tokens, prefixes: a beginning that requests share, and how many different ones there are.
    turns, think_time: requests per conversation, seconds between an answer and the next turn.
    prompts: JSONL file. trace: file of a trace. time_scale: 2 replays it twice as fast.
    max_input_tokens, max_output_tokens: what is longer in the trace is cut.
    """

    input_tokens: Span = Span(512, 512)
    output_tokens: Span | None = None
    prefix_tokens: int = 0
    prefixes: int = 1
    turns: int = 1
    think_time: float = 0.0
    prompts: str | None = None
    trace: str | None = None
    time_scale: float = 1.0
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.prompts is not None and self.trace is not None:
            raise ConfigError("prompts and trace both say what to ask; give one of them")
        if (self.prompts or self.trace) and (self.prefix_tokens or self.turns != 1):
            given = "prompts" if self.prompts else "trace"
            raise ConfigError(f"prefix_tokens and turns shape synthetic text; {given} brings its own")
        _positive(self, "prefixes", "turns", "time_scale", "max_input_tokens", "max_output_tokens")
        for name in ("prefix_tokens", "think_time"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Slo:
    """A request is inside the goal when both hold, in seconds; a limit of None always holds.

    share: of the requests that must be inside for a rate to count as sustained (DistServe, arXiv 2401.09670).
    """

    ttft: float | None = None
    tpot: float | None = None
    share: float = 0.9

    def __post_init__(self) -> None:
        _positive(self, "ttft", "tpot")
        if not 0 < self.share <= 1:
            raise ConfigError(f"slo_share: {self.share} must be above 0 and at most 1, such as 0.9")

    def __bool__(self) -> bool:
        return self.ttft is not None or self.tpot is not None

    def __str__(self) -> str:
        limits = (("TTFT", self.ttft), ("TPOT", self.tpot))
        return " and ".join(f"{name} ≤ {seconds(limit)}" for name, limit in limits if limit is not None)


def number(value: float) -> str:
    """Three digits, or all that are in front of the point: ``3.14159 -> "3.14"``, ``12345.6 -> "12,346"``."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """``0.0123 -> "12.3 ms"``, ``1.5 -> "1.5 s"``; a dash for None."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{number(value * 1e3)} ms" if value > 1e-6 else "0 ms"
    return f"{number(value)} s"
