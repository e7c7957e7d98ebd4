"""Who wants to know: metrics, cache reports, traces hang on here, and the server core knows none of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtrove.request import RequestMetrics, SamplingParams
from kvtrove.server.auth import Tenant
from kvtrove.server.engine_thread import EngineRequest, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One HTTP request that the engine has accepted. `time`: when it reached the server, monotonic clock, seconds.

    body: the validated request (a model of `protocol`). messages: of a chat, as the template saw them.
    requests: what the engine runs for it, one per prompt. answer: names the answer; its id ends with it.
    """

    id: str
    time: float
    route: str
    tenant: Tenant
    body: Any
    requests: tuple[EngineRequest, ...]
    answer: str = ""
    messages: tuple[Mapping[str, Any], ...] | None = None


@dataclass(slots=True)
class PromptResult:
    """What became of one prompt. Token counts; `finish_reasons`: one per output, "abort" where the client left.

    output_token_ids: what was drawn, by index of the output.
    """

    params: SamplingParams
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    output_token_ids: dict[int, list[int]] = field(default_factory=dict)
    finish_reasons: list[str] = field(default_factory=list)
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class Departure:
    """An HTTP request has ended. `error`: code of the error that ended it, "client_gone" when the client hung up."""

    arrival: Arrival
    time: float
    results: tuple[PromptResult, ...]
    error: str | None = None


class Observer:
    """Overrides what it wants to hear. Every method runs on the event loop and must be quick."""

    def on_arrival(self, arrival: Arrival) -> Mapping[str, Any] | None:
        """The engine has accepted a request; its first step is still to come. What is returned, the route finds in
        `Job.findings` while it writes the answer.
        """
        return None

    def on_step(self, step: Step) -> None:
        """The engine has finished a step."""

    def on_departure(self, departure: Departure) -> Mapping[str, Any] | None:
        """A request has ended. What is returned goes into the answer's `kvtrove` object, if one can still be sent."""
        return None

    def on_response_cache(self, found: bool) -> None:
        """The response cache was asked for a whole answer."""

    def on_error(self, route: str, status: int, code: str) -> None:
        """A request was answered with an error status. `route`: the path's pattern, empty when it matched none."""


class Observers(Observer):
    """Several observers as one; one that fails is logged and harms nobody."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def on_arrival(self, arrival: Arrival) -> Mapping[str, Any]:
        return self._gathered("on_arrival", arrival)

    def on_step(self, step: Step) -> None:
        self._tell("on_step", step)

    def on_departure(self, departure: Departure) -> Mapping[str, Any]:
        return self._gathered("on_departure", departure)

    def on_response_cache(self, found: bool) -> None:
        self._tell("on_response_cache", found)

    def on_error(self, route: str, status: int, code: str) -> None:
        self._tell("on_error", route, status, code)

    def _gathered(self, what: str, news: Any) -> dict[str, Any]:
        gathered: dict[str, Any] = {}
        for answer in self._tell(what, news):
            gathered.update(answer or {})
        return gathered

    def _tell(self, what: str, *news: Any) -> list[Any]:
        answers = []
        for observer in self._observers:
            try:
                answers.append(getattr(observer, what)(*news))
            except Exception:
                log.exception("%s of %s failed", what, type(observer).__name__)
        return answers
