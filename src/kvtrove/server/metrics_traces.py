"""One OpenTelemetry span per request, with the attributes of the semantic conventions for generative AI.

Spans go to whatever provider the process has (`opentelemetry-instrument kvtrove serve ...` sets one up from its
environment variables); without one, nothing is recorded. No span holds text of a prompt or an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from kvtrove.server.observer import Departure, Observer

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_TEXT_COMPLETION = "/v1/completions"


class Traces(Observer):
    """wall, monotonic: the two clocks, in nanoseconds and seconds; spans carry wall-clock times."""

    def __init__(
        self,
        model_name: str,
        tracer: Tracer | None = None,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_name = model_name
        self._tracer = tracer or trace.get_tracer("kvtrove")
        self._wall, self._monotonic = wall, monotonic

    def on_departure(self, departure: Departure) -> None:
        offset = self._wall() - int(self._monotonic() * 1e9)

        def at(seconds: float) -> int:
            return offset + int(seconds * 1e9)

        operation = "text_completion" if departure.arrival.route == _TEXT_COMPLETION else "chat"
        span = self._tracer.start_span(
            f"{operation} {self._model_name}", kind=SpanKind.SERVER, start_time=at(departure.arrival.time)
        )
        if not span.is_recording():
            return
        span.set_attributes(dict(self._attributes(departure, operation)))
        for result in departure.results:
            metrics = result.metrics
            if metrics is not None and metrics.first_scheduled_time is not None:
                span.add_event("kvtrove.scheduled", timestamp=at(metrics.first_scheduled_time))
            if metrics is not None and metrics.first_token_time is not None:
                span.add_event("kvtrove.first_token", timestamp=at(metrics.first_token_time))
        if departure.error is not None:
            span.set_status(Status(StatusCode.ERROR, departure.error))
        span.end(end_time=at(departure.time))

    def _attributes(self, departure: Departure, operation: str) -> Iterator[tuple[str, AttributeValue]]:
        arrival, results = departure.arrival, departure.results
        yield "gen_ai.operation.name", operation
        yield "gen_ai.provider.name", "kvtrove"
        yield "gen_ai.request.model", getattr(arrival.body, "model", None) or self._model_name
        yield "gen_ai.response.model", self._model_name
        yield "gen_ai.usage.input_tokens", sum(r.prompt_tokens for r in results)
        yield "gen_ai.usage.cache_read.input_tokens", sum(r.cached_tokens for r in results)
        yield "gen_ai.usage.output_tokens", sum(r.output_tokens for r in results)
        yield "gen_ai.response.finish_reasons", [reason for r in results for reason in r.finish_reasons]
        yield "http.route", arrival.route
        yield "kvtrove.request_id", arrival.id
        yield "kvtrove.tenant", arrival.tenant.name
        if results:
            params = results[0].params
            yield "gen_ai.request.temperature", params.temperature
            yield "gen_ai.request.top_p", params.top_p
            yield "gen_ai.request.choice.count", params.n
            if params.max_tokens is not None:
                yield "gen_ai.request.max_tokens", params.max_tokens
        if departure.error is not None:
            yield "error.type", departure.error
