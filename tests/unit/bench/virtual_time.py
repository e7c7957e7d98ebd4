"""Asyncio in virtual time: when every task sleeps, the clock jumps to the next one that wakes.

Hours of load pass in a moment, and every measured time is exact: nothing but sleeping takes time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """A selector that does not wait: it tells the loop how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits for something that never happens")
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


class StreamingASGITransport(httpx.AsyncBaseTransport):
    """httpx straight into an ASGI app, chunk by chunk as the app sends them (httpx's own waits for the end)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        start: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        hung_up = asyncio.Event()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.set_result((message["status"], message["headers"]))
                return
            if message.get("body"):
                parts.put_nowait(message["body"])
            if not message.get("more_body"):
                parts.put_nowait(None)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (request.url.host, request.url.port or 80),
            "client": ("127.0.0.1", 1),
        }
        task = asyncio.ensure_future(self.app(scope, receive, send))
        try:
            status, headers = await start
        except BaseException:
            task.cancel()
            raise
        return httpx.Response(status, headers=headers, stream=_Parts(parts, task, hung_up))


class _Parts(httpx.AsyncByteStream):
    def __init__(self, parts: asyncio.Queue[bytes | None], task: asyncio.Future[Any], hung_up: asyncio.Event) -> None:
        self.parts, self.task, self.hung_up = parts, task, hung_up

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self.parts.get()) is not None:
            yield part

    async def aclose(self) -> None:
        self.hung_up.set()
        self.task.cancel()
