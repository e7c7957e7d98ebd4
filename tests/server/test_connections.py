"""Connections: more than may be, idle ones, half-sent heads, and the descriptors that they need."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from kvtrove.config import ConfigError
from kvtrove.server import connections
from kvtrove.server.app import create_app
from kvtrove.server.auth import Keyring
from kvtrove.server.connections import BACKLOG, FILES, Connections, guarded, plan_descriptors
from kvtrove.server.service import Service
from kvtrove.server.settings import ServerSettings
from tests.server.fake_engine import FakeEngine

HEALTH = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(most: int, idle_timeout: float = 30.0, engine: FakeEngine | None = None) -> AsyncIterator[int]:
    """A server on a real socket; yields its port."""
    service = Service(engine or FakeEngine(), ServerSettings())  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(service, Keyring()), http=guarded(Connections(most, idle_timeout)), log_config=None, lifespan="on"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def connect(port: int) -> Pipe:
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(pipe: Pipe, request: bytes = HEALTH) -> bytes:
    """The status line and what else came with it; empty when the connection has been closed."""
    pipe[1].write(request)
    return await asyncio.wait_for(pipe[0].read(4096), 5)


def test_a_connection_too_many_pushes_out_the_one_idle_for_longest() -> None:
    async def scenario() -> None:
        async with serving(3) as port:
            pipes = [await connect(port) for _ in range(3)]
            assert b"200" in await ask(pipes[0])  # now the second one is the one that has been idle for longest
            late = await connect(port)
            assert b"200" in await ask(late)
            assert await asyncio.wait_for(pipes[1][0].read(), 5) == b"", "it was closed"
            assert b"200" in await ask(pipes[0])
            assert b"200" in await ask(pipes[2])

    asyncio.run(scenario())


def test_with_none_idle_it_gets_a_503_and_the_log_one_line(caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"prompt": "x", "max_tokens": 100000, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    request = head + f"content-length: {len(body)}\r\n\r\n".encode() + body

    async def scenario() -> None:
        async with serving(2, engine=FakeEngine(0.01, max_model_len=200_000)) as port:
            busy = [await connect(port) for _ in range(2)]
            for pipe in busy:
                assert b"200 OK" in await ask(pipe, request)
            for _ in range(20):
                late = await connect(port)
                answer = await asyncio.wait_for(late[0].read(), 5)
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert b"retry-after: 1" in answer
            for pipe in busy:
                pipe[1].close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert caplog.text.count("connections are open, the most there may be") == 1


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhost: 127", HEALTH + b"GET /hea"])
def test_a_connection_that_asks_for_nothing_is_closed(sent: bytes) -> None:
    """Also one that sends its head byte by byte: what counts is when it began."""

    async def scenario() -> None:
        async with serving(10, idle_timeout=0.4) as port:
            reader, writer = await connect(port)
            writer.write(sent)
            for _ in range(4):
                await asyncio.sleep(0.1)
                writer.write(b"x" if sent else b"")
            await asyncio.wait_for(reader.read(), 5)  # to the end
            assert b"200" in await ask(await connect(port))

    asyncio.run(scenario())


def test_a_request_under_way_is_never_idle() -> None:
    async def scenario() -> None:
        async with serving(10, idle_timeout=0.2, engine=FakeEngine(0.05)) as port:
            body = b'{"prompt": "x", "max_tokens": 12}'
            head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            request = head + f"content-length: {len(body)}\r\n\r\n".encode() + body
            assert b"200 OK" in await ask(await connect(port), request)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [
        (1024, 100_000, 4096, True),  # a soft limit that may be raised is
        (100_000, 100_000, 4096, False),
        (1024, 1024, 1024 - 100 - FILES - 128, False),
        (4096, 4096, 4096 - 100 - FILES - BACKLOG, False),
    ],
)
def test_descriptors_are_kept_for_the_backlog(
    soft: int, hard: int, most: int, raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(connections, "_open_descriptors", lambda: 100)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    planned = plan_descriptors(4096)
    assert planned.most == most
    assert bool(set_to) is raised
    assert planned.most + planned.backlog + 100 < (set_to[0][0] if set_to else soft)


def test_too_few_descriptors_are_refused_with_a_number_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_open_descriptors", lambda: 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"64 file descriptors \(ulimit -n\) leave none .*ulimit -n 1108"):
        plan_descriptors(4096)
