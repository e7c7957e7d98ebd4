"""What the server is doing, and did in the last minutes: for the page at `/`, `kvtrove top`, and a line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from typing_extensions import TypedDict

from kvtrove.server.auth import Tenant
from kvtrove.server.engine_thread import Step
from kvtrove.server.metrics_facts import Timing
from kvtrove.server.observer import Arrival, Departure, Observer

log = logging.getLogger(__name__)
PERIOD = 5.0  # seconds of one sample
SAMPLES = 120  # that are kept: ten minutes
LINE_EVERY = 10.0  # seconds


class Sample(TypedDict):
    """One period. age: seconds since its end. Tokens: prompts, of them reused, and output. ttft, ttft_p95, tpot:
    seconds, null without a request that ended. usage: of the cache's blocks, those that requests held, 0 to 1.
    """

    age: float
    requests: int
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    running: int
    waiting: int
    usage: float
    ttft: float | None
    ttft_p95: float | None
    tpot: float | None


class InFlight(TypedDict):
    """A request that has not ended. Tokens of all its prompts and outputs. state: as `_Running.state`; while that is
    "running", reused and output tokens are not known yet, and 0.
    """

    id: str
    tenant: str
    route: str
    seconds: float
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    state: str


class TenantShare(TypedDict):
    """Since the start; blocks: about what its running requests hold."""

    tenant: str
    requests: int
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    blocks: int


@dataclass(slots=True)
class _Window:
    """Counts of one period."""

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)

    def add(self, prompt: int, reused: int, output: int) -> None:
        self.requests += 1
        self.prompt_tokens += prompt
        self.reused_tokens += reused
        self.output_tokens += output


@dataclass(slots=True)
class _Running:
    """A request in flight. tokens: by the engine's request, (reused, output)."""

    arrival: Arrival
    reused: dict[str, int] = field(default_factory=dict)
    output: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """ "prompt" or "decoding"; "running" where the engine says nothing before the end, since nobody streams."""
        if not getattr(self.arrival.body, "stream", False):
            return "running"
        return "decoding" if self.output else "prompt"

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.arrival.requests)


class Activity(Observer):
    """Observes every request; all methods belong to the event loop. clock: monotonic seconds."""

    def __init__(self, block_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.block_size, self.clock, self.started = block_size, clock, clock()
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=SAMPLES)
        self._now, self._line = _Window(), _Window()
        self._until = self.started + PERIOD
        self._requests: dict[str, _Running] = {}  # by id of the HTTP request
        self._owner: dict[str, _Running] = {}  # by id of the engine's request
        self._tenants: dict[str, _Window] = {}
        self._last: Step | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ---- what happens ----

    def on_arrival(self, arrival: Arrival) -> Mapping[str, Any] | None:
        running = _Running(arrival)
        self._requests[arrival.id] = running
        self._owner.update((request.id, running) for request in arrival.requests)
        return None

    def on_step(self, step: Step) -> None:
        self._roll()
        self._last = step
        for output in step.outputs:
            running = self._owner.get(output.request_id)
            if running is not None:
                tokens = sum(len(one.token_ids) for one in output.outputs)
                running.reused[output.request_id] = output.num_cached_tokens
                running.output[output.request_id] = running.output.get(output.request_id, 0) + tokens
        if self._timer is None and log.isEnabledFor(logging.INFO):
            self._timer = asyncio.get_running_loop().call_later(LINE_EVERY, self._say)

    def on_departure(self, departure: Departure) -> Mapping[str, Any] | None:
        self._roll()
        arrival = departure.arrival
        self._requests.pop(arrival.id, None)
        for request in arrival.requests:
            self._owner.pop(request.id, None)
        for result in departure.results:
            counts = (result.prompt_tokens, result.cached_tokens, result.output_tokens)
            tenant = self._tenants.setdefault(arrival.tenant.name, _Window())
            for window in (self._now, self._line, tenant):
                window.add(*counts)
            timing = Timing.of(arrival.time, result)
            if timing is not None:
                for window in (self._now, self._line):
                    window.ttft.append(timing.first_token)
                    window.tpot += [timing.mean_gap] if timing.gaps else []
        return None

    def _roll(self) -> None:
        """Close the periods that have passed."""
        now = self.clock()
        if now - self._until > SAMPLES * PERIOD:
            self._samples.clear()
            self._until = now - SAMPLES * PERIOD
        while now >= self._until:
            self._samples.append((self._until, self._sample(self._now)))
            self._now = _Window()
            self._until += PERIOD

    def _sample(self, window: _Window) -> Sample:
        stats = None if self._last is None else self._last.stats
        return {
            "age": 0.0,
            "requests": window.requests,
            "prompt_tokens": window.prompt_tokens,
            "reused_tokens": window.reused_tokens,
            "output_tokens": window.output_tokens,
            "running": 0 if stats is None else stats.num_running,
            "waiting": 0 if stats is None else stats.num_waiting,
            "usage": 0.0 if stats is None else stats.kv.usage,
            "ttft": median(window.ttft) if window.ttft else None,
            "ttft_p95": _p95(window.ttft),
            "tpot": median(window.tpot) if window.tpot else None,
        }

    def _say(self) -> None:
        """The line of the log, when there was traffic."""
        self._timer = None
        window, self._line = self._line, _Window()
        if self._last is None:
            return
        stats, hits = self._last.stats, 100 * window.reused_tokens / max(1, window.prompt_tokens)
        ttft = f", TTFT {median(window.ttft):.3f} s" if window.ttft else ""
        log.info(
            "%d requests in %g s: prompts %.1f tokens/s (%.0f %% reused), output %.1f tokens/s%s; "
            "running %d, waiting %d; KV cache %.1f %% in use",
            *(window.requests, LINE_EVERY, window.prompt_tokens / LINE_EVERY, hits),
            *(window.output_tokens / LINE_EVERY, ttft),
            *(stats.num_running, stats.num_waiting, 100 * stats.kv.usage),
        )

    # ---- what is asked ----

    def history(self) -> list[Sample]:
        """Oldest first."""
        self._roll()
        now = self.clock()
        return [{**sample, "age": round(now - end, 1)} for end, sample in self._samples]

    def in_flight(self, tenant: Tenant) -> list[InFlight]:
        """Oldest first: of the tenant, and for an administrator of all."""
        now = time.monotonic()
        return [
            {
                "id": running.arrival.id,
                "tenant": running.arrival.tenant.name,
                "route": running.arrival.route,
                "seconds": round(now - running.arrival.time, 2),
                "prompt_tokens": running.prompt_tokens,
                "reused_tokens": sum(running.reused.values()),
                "output_tokens": sum(running.output.values()),
                "state": running.state,
            }
            for running in self._requests.values()
            if tenant.admin or running.arrival.tenant.name == tenant.name
        ]

    def tenants(self, asking: Tenant) -> list[TenantShare]:
        """Like `in_flight`."""
        blocks: dict[str, int] = {}
        for running in self._requests.values():
            tokens = running.prompt_tokens + sum(running.output.values())
            name = running.arrival.tenant.name
            blocks[name] = blocks.get(name, 0) + -(-tokens // self.block_size)
        return [
            {
                "tenant": name,
                "requests": window.requests,
                "prompt_tokens": window.prompt_tokens,
                "reused_tokens": window.reused_tokens,
                "output_tokens": window.output_tokens,
                "blocks": blocks.get(name, 0),
            }
            for name, window in ((name, self._tenants.get(name, _Window())) for name in {**self._tenants, **blocks})
            if asking.admin or name == asking.name
        ]


def _p95(values: list[float]) -> float | None:
    if not values:
        return None
    return values[0] if len(values) == 1 else quantiles(values, n=20, method="inclusive")[-1]
