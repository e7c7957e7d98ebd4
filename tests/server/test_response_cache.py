"""Whole answers that are kept: which requests find them, what marks them, and what happens when the store fails."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from kvtrove.config import ConfigError
from kvtrove.server.auth import Keyring, Tenant, tenant_salt
from kvtrove.server.response_cache import KeptAnswer, MemoryStore, RedisStore, ResponseCache, store_of
from tests.server.fake_engine import FakeEngine
from tests.server.in_process import App, running_app

HEADER = "x-kvtrove-response-cache"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_memory_keeps_what_fits_and_what_was_used_last() -> None:
    async def scenario() -> None:
        clock = Clock()
        store = MemoryStore(160, ttl=10, clock=clock)
        await store.put("large", bytes(11))
        assert await store.get("large") is None
        for i in range(16):
            await store.put(str(i), bytes(10))
        assert await store.get("0") == bytes(10)
        await store.put("16", bytes(10))
        assert [await store.get(key) is not None for key in ("0", "1", "16")] == [True, False, True]
        assert store.nbytes == 160
        clock.now = 10.0
        assert await store.get("0") is None
        assert store.nbytes == 150

    asyncio.run(scenario())


@asynccontextmanager
async def caching_app(keyring: Keyring | None = None) -> AsyncIterator[App]:
    async with running_app(FakeEngine(), keyring=keyring) as app:
        found: list[bool] = []
        app.service.response_cache = ResponseCache(MemoryStore(2**20, 60), lambda model: b"x", {}, found.append)
        app.found = found  # type: ignore[attr-defined]
        yield app


def added(app: App) -> int:
    """Requests that the engine has computed."""
    return sum(what == "add" for what, _ in app.engine.log)


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_is_answered_without_the_engine(stream: bool) -> None:
    async def scenario() -> None:
        async with caching_app() as app:
            asked = {"temperature": 0, "max_tokens": 3, "stream": stream}
            first = await app.complete(**asked)
            again = await app.complete(**asked, user="somebody else")
            assert (added(app), app.found) == (1, [False, True])  # type: ignore[attr-defined]
            assert HEADER not in first.headers
            assert again.headers[HEADER].startswith("hit; age=")
            assert again.headers["content-type"] == first.headers["content-type"]
            if stream:
                assert again.text == first.text
                assert again.text.endswith("data: [DONE]\n\n")
            else:
                marked = again.json()
                assert marked.pop("kvtrove")["response_cache"]["age_seconds"] >= 0
                assert marked == first.json()
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"temperature": None}, {"max_tokens": 4}, {"stop": ["x"]}, {"seed": 1}, {"stream": True}],
    ids=str,
)
def test_another_request_is_computed(change: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with caching_app() as app:
            asked: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
            await app.complete(**asked)
            assert HEADER not in (await app.complete(**asked | change)).headers
            assert added(app) == 2

    asyncio.run(scenario())


def test_tenants_never_see_each_others_answers() -> None:
    keys = [("a" * 16, Tenant("a", tenant_salt("a"))), ("b" * 16, Tenant("b", tenant_salt("b")))]

    async def scenario() -> None:
        async with caching_app(Keyring(keys)) as app:

            async def ask(key: str) -> httpx.Response:
                body = {"prompt": "x", "temperature": 0, "max_tokens": 2}
                return await app.client.post("/v1/completions", json=body, headers={"x-api-key": key * 16})

            assert [HEADER in (await ask(key)).headers for key in "abab"] == [False, False, True, True]

    asyncio.run(scenario())


def test_clients_ask_for_a_fresh_answer_as_http_says() -> None:
    async def scenario() -> None:
        async with caching_app() as app:
            body = {"prompt": "x", "temperature": 0, "max_tokens": 2}
            seen = []
            for control in ("no-store", "", "no-cache", ""):
                headers = {"cache-control": control}
                answer = await app.client.post("/v1/completions", json=body, headers=headers)
                seen.append(HEADER in answer.headers)
            assert (seen, added(app)) == ([False, False, False, True], 3)

    asyncio.run(scenario())


def test_an_answer_that_was_cut_short_is_not_kept() -> None:
    async def scenario() -> None:
        async with caching_app() as app:
            app.service.limits = replace(app.service.limits, request_timeout=0.05)
            app.engine.step_seconds = 0.01
            for _ in range(2):
                answer = await app.complete(temperature=0, max_tokens=2000, stream=True)
                assert "request_timeout" in answer.text
            assert app.found == [False, False]  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_store_that_fails_or_holds_something_else_is_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    for value in (
        b"",
        b"[]",
        b"{}",
        b'{"made":1,"answer":null,"events":null}',
        b'{"made":1.0,"answer":3,"events":[1]}',
    ):
        assert KeptAnswer.decode(value) is None
    assert KeptAnswer.decode(json.dumps({"made": 1.0, "answer": {}, "events": None}).encode()) is not None

    async def scenario() -> None:
        store = RedisStore("redis://127.0.0.1:1/0", 60)
        for _ in range(2):
            await store.put("a", b"b")
            assert await store.get("a") is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.message[:39] for record in caplog.records] == ["the response cache does not answer, so "]


@pytest.mark.parametrize(
    ("setting", "ttl", "message"),
    [
        ("much", 1.0, "response_cache: cannot read 'much' as a size; write for example 8GiB"),
        ("http://x", 1.0, "response_cache: .*write for example redis://localhost:6379/0"),
        ("1MiB", 0.0, "response_cache_ttl: 0 must be larger than zero seconds"),
    ],
)
def test_wrong_settings(setting: str, ttl: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        store_of(setting, ttl)
    assert store_of(None, 0.0) is None
