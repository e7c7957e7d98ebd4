"""A request on its way to the process that serves its model, and the answer back, piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from kvtrove.fleet.child import Child
from kvtrove.fleet.fleet import Fleet
from kvtrove.server.errors import ApiError, as_api_error, refused

PROGRESS_EVERY = 1.0  # seconds between two signs of a load in a stream
_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade", "trailer"}
)
"""Headers of one connection, which another one has for itself."""
LARGE = 65_536  # bytes of a body that is read off the event loop


async def asked_model(request: Request, body: bytes) -> tuple[str | None, bool]:
    """The model that a request names (in its JSON body, as `?model=`, or in `x-kvtrove-model`) and whether it streams.

    ApiError 400 for a name that is no text. A body that is no JSON is left to the model's server to refuse.
    """
    named = request.query_params.get("model") or request.headers.get("x-kvtrove-model")
    fields: Any = None
    if body:
        try:
            fields = await asyncio.to_thread(json.loads, body) if len(body) > LARGE else json.loads(body)
        except (ValueError, RecursionError):
            fields = None
    if not isinstance(fields, Mapping):
        return named, False
    name = fields.get("model", named)
    if name is not None and not isinstance(name, str):
        raise refused("model: it must be a text", "model")
    return name, fields.get("stream") is True


async def forward(request: Request, body: bytes, fleet: Fleet, child: Child, stream: bool) -> Response:
    """The model's own answer. ApiError 503 when it cannot be loaded, or must not be waited for."""
    if child.state != "ready":
        if not fleet.wait:
            seconds = fleet.begin_load(child)
            text = f"{child.entry.name} is being loaded; come back in about {seconds} s"
            raise ApiError(503, text, code="model_loading", headers={"retry-after": str(seconds)})
        if stream:
            return StreamingResponse(_patient(request, body, fleet, child), media_type="text/event-stream")
    return await _passed_on(request, body, fleet, child)


async def look(request: Request, fleet: Fleet, child: Child) -> Response:
    """The answer of a model that is loaded, which is no use of it. ApiError 503 otherwise."""
    if child.state != "ready":
        name = child.entry.name
        text = f"{name} is {child.state}: a request to it, or POST /v1/models/{name}/load, loads it"
        raise ApiError(503, text, code="model_not_loaded")
    return await _passed_on(request, b"", fleet, child, looks=True)


async def _passed_on(
    request: Request, body: bytes, fleet: Fleet, child: Child, looks: bool = False
) -> StreamingResponse:
    headers = _without_hop(request.headers)
    headers["x-request-id"] = request.state.request_id
    url = httpx.URL(path=request.url.path, query=request.url.query.encode())
    async with AsyncExitStack() as held:
        await held.enter_async_context(fleet.using(child, looks=looks))
        outgoing = child.client.build_request(request.method, url, headers=headers, content=body)
        try:
            answer = await child.client.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            text = f"{child.entry.name} does not answer; try again"
            raise ApiError(503, text, code="model_gone", headers={"retry-after": "1"}) from error
        held.push_async_callback(answer.aclose)
        kept = held.pop_all()

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with kept:
            async for piece in answer.aiter_raw():
                yield piece

    return StreamingResponse(pieces(), answer.status_code, _without_hop(answer.headers))


async def _patient(request: Request, body: bytes, fleet: Fleet, child: Child) -> AsyncGenerator[bytes, None]:
    """A stream that shows signs of life while its model is loaded, and then is the model's own."""
    passing = asyncio.ensure_future(_passed_on(request, body, fleet, child))
    waited = 0.0
    try:
        while not (await asyncio.wait({passing}, timeout=PROGRESS_EVERY))[0]:
            waited += PROGRESS_EVERY
            yield f": {child.entry.name} is {child.state}, {waited:.0f} s\n\n".encode()
        answer = passing.result()
    except Exception as error:
        yield _error_event(as_api_error(error).body)
        return
    finally:
        passing.cancel()
    pieces = [piece async for piece in answer.body_iterator] if answer.status_code != 200 else None
    if pieces is None:
        async for piece in answer.body_iterator:
            yield _bytes(piece)
        return
    try:
        yield _error_event(json.loads(b"".join(map(_bytes, pieces))))
    except ValueError:
        yield _error_event(as_api_error(RuntimeError()).body)


def _bytes(piece: str | bytes | memoryview) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def _error_event(body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()


def _without_hop(headers: Headers | httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP}


async def json_of(child: Child, path: str, headers: Mapping[str, str]) -> Any:
    """A small JSON answer of a model's server; None when it has none."""
    try:
        answer = await child.client.get(path, headers=dict(headers), timeout=5)
        return answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
