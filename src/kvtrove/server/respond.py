"""How a generating route answers: at once or as a stream, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kvtrove.server.errors import ApiError, as_api_error
from kvtrove.server.job import Caller, Job
from kvtrove.server.response_cache import KeptAnswer, Recorded
from kvtrove.server.service import Service
from kvtrove.text.json_text import has_many, write_json

log = logging.getLogger(__name__)
T = TypeVar("T")
CLIENT_GONE = 499  # nginx's number for it; nobody reads it but the access log


class Endpoint(Protocol):
    """What one API does with a job: made by its route, used once. keep_alive: an event that its clients pass over."""

    keep_alive: str

    async def submit(self) -> None:
        """Build the prompts and hand them to the engine; whatever is wrong with the request is raised here."""
        ...

    def events(self) -> AsyncGenerator[str, None]:
        """The answer as server-sent events, ready for the wire."""
        ...

    async def answer(self) -> Any:
        """The answer as one JSON value."""
        ...

    def error_event(self, error: ApiError) -> str:
        """How a stream tells that it ends early."""
        ...


MAX_NAMED = 4
"""Fields that a warning names."""


def open_job(service: Service, request: Request, body: Any) -> Job:
    """Admit a request. ApiError when it is refused."""
    state = request.state
    route = getattr(request.scope.get("route"), "path", request.url.path)
    if request.headers.get("x-kvtrove-cache-report") == "1":
        body.cache_report = True
    state.job = Job(service, Caller(state.request_id, state.arrival_time, route, state.tenant), body)
    if body.unknown:
        state.job.warn("fields not known here: " + ", ".join(f"{name:.64}" for name in body.unknown[:MAX_NAMED]))
    return state.job


async def respond(request: Request, job: Job, endpoint: Endpoint, stream: bool) -> Response:
    """Run the job, or send what the response cache keeps. When this raises or the client leaves, nothing is left."""
    cache = job.service.response_cache
    key = cache.key(request, job, stream)
    try:
        if key is not None:
            if (kept := await cache.get(request, key)) is not None:
                job.close()
                return _kept(job, kept)
            endpoint = Recorded(endpoint, cache, key)
        if not await _unless_gone(request.receive, _submitted(endpoint)):
            job.close()
            return Response(status_code=CLIENT_GONE)
        if stream:
            return EventStream(job, endpoint)
        answer = await _unless_gone(request.receive, endpoint.answer())
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        return await json_response(job.service, answer, job.headers)
    except Exception as error:
        job.close(as_api_error(error).body["error"]["code"])
        raise
    except BaseException:
        job.close()
        raise
    finally:
        if not stream:
            job.close()


async def json_response(service: Service, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON. One of many parts is written off the event loop."""
    text = await service.in_pool(_text, value) if has_many(value) else _text(value)
    return Response(text, headers=headers, media_type="application/json")


def _text(value: Any) -> str:
    """As JSON, which has no NaN: what a client sent and gets to see again may hold some, as 1e400 is one to Python."""
    try:
        return write_json(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return write_json(_finite(value), separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kept(job: Job, kept: KeptAnswer) -> Response:
    headers = job.headers | kept.headers
    if kept.events is None:
        return JSONResponse(kept.marked(), headers=headers)
    return Response("".join(kept.events), media_type=EventStream.media_type, headers=STREAM_HEADERS | headers)


async def _submitted(endpoint: Endpoint) -> bool:
    await endpoint.submit()
    return True


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client hangs up first; then `work` is cancelled."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancel(task, gone)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_LINE_BREAK = re.compile("[\x85\u2028\u2029]")  # of those that readers of lines know, the ones that JSON may hold


def sse(data: Any, event: str | None = None) -> str:
    """One server-sent event."""
    text = _LINE_BREAK.sub(lambda found: f"\\u{ord(found[0]):04x}", _text(data))
    return f"data: {text}\n\n" if event is None else f"event: {event}\ndata: {text}\n\n"


DONE = "data: [DONE]\n\n"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
COMMENT = ": keep-alive\n\n"  # no event at all to those who read events


class EventStream(Response):
    """Sends an endpoint's events. Ends, and closes the job, when they end, the client leaves, or it stops reading."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, endpoint: Endpoint) -> None:
        super().__init__(headers=STREAM_HEADERS | job.headers)
        del self.headers["content-length"]
        self.job, self.endpoint = job, endpoint
        self._open = False  # events may be sent
        self._sending = asyncio.Lock()
        self._blocked_since: float | None = None  # time at which the connection took no more
        self._last_sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = self.endpoint.events()
        pump = asyncio.ensure_future(self._pump(events, send))
        watches = (_disconnect(receive), self._stalled(), self._keep_alive(send))
        others = [asyncio.ensure_future(watch) for watch in watches]
        try:
            await asyncio.wait((pump, *others), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _cancel(pump, *others)
            await events.aclose()
            self.job.close()

    async def _pump(self, events: AsyncGenerator[str, None], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._open = True
        try:
            async for event in events:
                await self._send(send, event)
        except Exception as failure:
            error = as_api_error(failure)
            if error.status >= 500:
                log.error("request %s failed while streaming", self.job.caller.request_id, exc_info=failure)
            self.job.finish(error.body["error"]["code"])
            await self._send(send, self.endpoint.error_event(error))
        self._open = False
        await self._send(send, "", more=False)

    async def _send(self, send: Send, event: str, *, more: bool = True) -> None:
        async with self._sending:
            self._blocked_since = time.monotonic()
            await send({"type": "http.response.body", "body": event.encode(errors="replace"), "more_body": more})
            self._blocked_since, self._last_sent = None, time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        """Break every silence: proxies and clients give up a connection on which nothing moves."""
        interval = self.job.service.limits.keep_alive
        while True:
            quiet = time.monotonic() - self._last_sent
            if quiet < interval:
                await asyncio.sleep(interval - quiet)
            elif self._open and not self._sending.locked():
                await self._send(send, self.endpoint.keep_alive)
            else:
                await asyncio.sleep(interval / 10)

    async def _stalled(self) -> None:
        """Returns when the client has not read for so long that it counts as gone."""
        limit = self.job.service.limits.idle_timeout
        while self._blocked_since is None or time.monotonic() - self._blocked_since < limit:
            await asyncio.sleep(limit / 4)
        log.warning("request %s: the client stopped reading", self.job.caller.request_id)
        self.job.close("client_stalled")
