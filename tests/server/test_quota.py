"""Rates of a tenant: what it may ask per minute, what it is told, and what comes back to it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from kvtrove.server.auth import Keyring, Rates, Tenant
from kvtrove.server.errors import ApiError
from kvtrove.server.quota import Quotas
from tests.server.fake_engine import FakeEngine
from tests.server.in_process import App, running_app

KEY = "a" * 16


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_come_back_evenly() -> None:
    clock = Clock()
    quotas, tenant = Quotas(clock), Tenant("a", rates=Rates(requests_per_minute=30, burst_seconds=4))
    for left in (1, 0):
        quotas.take(tenant, "requests", 1)
        assert quotas.headers(tenant)["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(ApiError, match=r"30 requests per minute; try again in 2\.0 s") as refused:
        quotas.take(tenant, "requests", 1)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "2")
    clock.now += 2.0
    quotas.take(tenant, "requests", 1)
    quotas.take(tenant, "tokens", 10**9)  # no limit of theirs
    quotas.take(Tenant("b"), "requests", 1)
    assert quotas.headers(Tenant("b")) == {}


def test_tokens_that_were_not_needed_come_back_and_those_beyond_the_guess_are_owed() -> None:
    clock = Clock()
    quotas, tenant = Quotas(clock), Tenant("a", rates=Rates(tokens_per_minute=600))
    quotas.take(tenant, "tokens", 500)
    quotas.give_back(tenant, "tokens", 450)
    assert quotas.headers(tenant)["x-ratelimit-remaining-tokens"] == "550"
    quotas.give_back(tenant, "tokens", -600)
    with pytest.raises(ApiError, match=r"try again in 5\.1 s"):
        quotas.take(tenant, "tokens", 1)
    with pytest.raises(ApiError, match="takes up to 601 tokens, and a may take 600 at once") as never:
        quotas.take(tenant, "tokens", 601)
    assert never.value.status == 400


def test_new_rates_of_a_key_file_begin_full() -> None:
    quotas = Quotas(Clock())
    quotas.take(Tenant("a", rates=Rates(requests_per_minute=1)), "requests", 1)
    quotas.take(Tenant("a", rates=Rates(requests_per_minute=2)), "requests", 1)


@pytest.mark.parametrize("stream", [False, True])
def test_over_http(stream: bool) -> None:
    """Headers of every answer; 429 with the time to wait; what an answer did not need is back when it ends."""
    rates = Rates(requests_per_minute=2, tokens_per_minute=1000)

    async def ask(app: App, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEY}"}
        return await app.client.post("/v1/completions", json={"prompt": "x", "stream": stream, **body}, headers=headers)

    async def scenario() -> None:
        keys = Keyring([(KEY, Tenant("a", rates=rates))])
        async with running_app(FakeEngine(), keyring=keys) as app:
            first = await ask(app, max_tokens=3)
            assert first.status_code == 200
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert int(first.headers["x-ratelimit-remaining-tokens"]) > 990
            too_long = await ask(app, max_tokens=2000)
            assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "request_too_large")
            late = await ask(app, max_tokens=3)
            assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert 1 <= int(late.headers["retry-after"]) <= 30
            assert late.headers["x-ratelimit-remaining-requests"] == "0"
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())
