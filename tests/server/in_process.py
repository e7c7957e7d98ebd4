"""The application inside the test's own event loop, on a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from kvtrove.server.app import create_app
from kvtrove.server.auth import Keyring
from kvtrove.server.observer import Observer
from kvtrove.server.service import Service
from kvtrove.server.settings import Limits, ServerSettings
from tests.server.fake_engine import FakeEngine


@dataclass
class App:
    app: FastAPI
    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": "x", **body})

    async def until(self, condition: Any) -> None:
        """Wait until `condition()`; AssertionError when it does not come true."""
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running_app(
    engine: FakeEngine | None = None,
    *,
    keyring: Keyring | None = None,
    limits: Limits | None = None,
    observers: Iterable[Observer] = (),
    cors_origins: tuple[str, ...] = (),
) -> AsyncIterator[App]:
    engine = engine or FakeEngine()
    settings = ServerSettings(served_model_names=("demo",), limits=limits or Limits(), cors_origins=cors_origins)
    service = Service(engine, settings, observers)  # type: ignore[arg-type]
    app = create_app(service, keyring or Keyring())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client,
    ):
        yield App(app, service, engine, client)


class Connection:
    """A raw ASGI connection: the test decides when the body comes, how fast the answer is read, when it hangs up."""

    def __init__(self, app: FastAPI, path: str, body: bytes, *, more_body: bool = False) -> None:
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more_body})
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "scheme": "http",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1234),
            "root_path": "",
        }

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        self.sent.append(message)

    async def run(self) -> None:
        await self.app(self.scope, self._incoming.get, self._send)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return next(m["status"] for m in self.sent if m["type"] == "http.response.start")

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent).decode()
