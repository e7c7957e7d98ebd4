"""One HTTP request and its work in the engine, from admission to the last word about it."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvtrove.request import RequestOutput
from kvtrove.server.auth import Tenant
from kvtrove.server.engine_thread import EngineRequest, OutputStream
from kvtrove.server.errors import refused, timed_out
from kvtrove.server.observer import Arrival, Departure, PromptResult
from kvtrove.server.protocol.common import Usage
from kvtrove.server.service import Service

_NOT_PLAIN = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for what. `time`: arrival on the monotonic clock."""

    request_id: str
    time: float
    route: str
    tenant: Tenant


class Job:
    """Leaves nothing behind: `close` gives back the seat, and the blocks of whatever still runs.

    enter (may be refused) -> submit -> outputs ... -> finish -> close
    """

    def __init__(self, service: Service, caller: Caller, body: Any) -> None:
        """ApiError 429 or 503 when there is no room, or the tenant asks too often."""
        service.quotas.take(caller.tenant, "requests", 1)
        service.admission.enter(caller.tenant)
        self.service, self.caller, self.body = service, caller, body
        self.key = uuid.uuid4().hex  # names the answer, and its requests in the engine
        self.created = int(time.time())
        self.results: tuple[PromptResult, ...] = ()
        self.notes: dict[str, Any] = {}  # the answer's `kvtrove` object
        self.warnings: list[str] = []  # of the answer's headers
        options = getattr(body, "prompt_cache_options", None)
        self.prewarms = bool(options and options.prewarm)  # the prompt is computed, and nothing is answered
        self.reasoning_tokens = 0  # of the output tokens, those of thoughts
        self.findings: Mapping[str, Any] = {}  # what observers know of a request before it runs
        self._arrival: Arrival | None = None
        self._stream: OutputStream | None = None
        self._departed = self._closed = self._prepared = False
        self._timer: asyncio.TimerHandle | None = None
        self._tokens_taken = 0  # from the tenant's rate

    async def submit(
        self, requests: Sequence[EngineRequest], messages: tuple[Mapping[str, Any], ...] | None = None
    ) -> None:
        """Hand the prompts to the engine. RequestError when one can never be served; then none is."""
        self._prepared = True
        adapter = self.service.adapter_of(getattr(self.body, "model", None))
        requests = [replace(request, adapter=adapter) for request in requests] if adapter else requests
        self.service.admission.prepared(len(requests))
        tokens = sum(len(r.prompt_token_ids) + r.sampling.n * (r.sampling.max_tokens or 0) for r in requests)
        self.service.quotas.take(self.caller.tenant, "tokens", tokens)
        self._tokens_taken = tokens
        self._stream = await self.service.engine.submit(requests)
        limit = self.service.limits.request_timeout
        left = limit - (time.monotonic() - self.caller.time)
        self._timer = asyncio.get_running_loop().call_later(left, self._stream.give_up, timed_out(limit))
        self.results = tuple(PromptResult(r.sampling, len(r.prompt_token_ids)) for r in requests)
        self._arrival = Arrival(
            id=self.caller.request_id,
            time=self.caller.time,
            route=self.caller.route,
            tenant=self.caller.tenant,
            body=self.body,
            requests=tuple(requests),
            answer=self.key,
            messages=messages,
        )
        self.findings = self.service.observers.on_arrival(self._arrival)

    async def outputs(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """(prompt, news of it) until all have ended. ApiError when it takes too long, the engine fails, or a
        text cannot be brought to an end within its grammar.
        """
        assert self._stream is not None, "submit() comes first"
        while not self._stream.finished:
            index, output = await self._stream.next()
            self._count(self.results[index], output)
            for one in output.outputs:
                if one.finish_reason == "error":
                    raise refused(str(one.stop_reason), code="grammar_failed")
            yield index, output

    async def final(self) -> list[RequestOutput]:
        """The last output of every prompt, in their order."""
        last = {index: output async for index, output in self.outputs()}
        return [last[index] for index in sorted(last)]

    @staticmethod
    def _count(result: PromptResult, output: RequestOutput) -> None:
        result.cached_tokens = output.num_cached_tokens
        result.output_tokens += sum(len(o.token_ids) for o in output.outputs)
        for one in output.outputs:
            result.output_token_ids.setdefault(one.index, []).extend(one.token_ids)
        result.metrics = output.metrics
        if output.finished:
            result.finish_reasons = [o.finish_reason or "abort" for o in output.outputs]

    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = sum(r.prompt_tokens for r in self.results)
        output = 0 if self.prewarms else sum(r.output_tokens for r in self.results)
        usage: Usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": sum(r.cached_tokens for r in self.results)},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
        known = [r.metrics for r in self.results if r.metrics is not None]
        drafted, accepted = sum(m.num_draft_tokens for m in known), sum(m.num_accepted_tokens for m in known)
        if drafted:
            usage["completion_tokens_details"] |= {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            }
        return usage

    def facts(self) -> dict[str, Any]:
        """For the log: tokens, and the seconds until the first one. Empty when the engine never had the request."""
        if not self.results:
            return {}
        firsts = [r.metrics.first_token_time for r in self.results if r.metrics and r.metrics.first_token_time]
        return {
            "prompt_tokens": sum(r.prompt_tokens for r in self.results),
            "reused_tokens": sum(r.cached_tokens for r in self.results),
            "output_tokens": sum(r.output_tokens for r in self.results),
            "ttft": round(min(firsts) - self.caller.time, 4) if firsts else None,
        }

    def warn(self, text: str) -> None:
        """In a header of the answer, whose characters are plain whatever a client sent."""
        self.warnings.append(_NOT_PLAIN.sub("?", text))

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        warning = {"x-kvtrove-warning": "; ".join(self.warnings)} if self.warnings else {}
        return warning | self.service.quotas.headers(self.caller.tenant)

    def end_early(self) -> None:
        """All that is wanted has been written: the engine stops, and the request counts as finished."""
        if self._stream is not None and not self._stream.finished:
            self._stream.close()
            for result in self.results:
                result.finish_reasons = result.finish_reasons or ["stop"] * max(1, result.params.n)

    def finish(self, error: str | None = None) -> dict[str, Any]:
        """Tell the observers, once, how it ended; returns what goes into the answer's `kvtrove` object."""
        if self._arrival is not None and not self._departed:
            self._departed = True
            departure = Departure(self._arrival, time.monotonic(), self.results, error)
            self.notes |= self.service.observers.on_departure(departure)
            shifted = [r for r in self.results if r.metrics is not None and r.metrics.num_dropped_tokens]
            if self.service.is_endless and shifted:
                self.notes["truncated"] = True  # llama.cpp's word for a context that was shifted
        return self.notes

    def close(self, error: str = "client_gone") -> None:
        """Give everything back. `error`: why, when the answer was not complete."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.close()
        if not self._prepared:
            self.service.admission.prepared()
        self.service.admission.leave(self.caller.tenant, time.monotonic() - self.caller.time)
        needed = sum(r.prompt_tokens - r.cached_tokens + r.output_tokens for r in self.results)
        self.service.quotas.give_back(self.caller.tenant, "tokens", self._tokens_taken - needed)
        self.finish(error)
