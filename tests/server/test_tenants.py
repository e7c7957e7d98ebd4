"""Tenants: what one has cached serves no other, unless both say that they share."""

from __future__ import annotations

from typing import Any

from tests.server.conftest import ADMIN, ALICE, BOB, SHARED
from tests.server.live import LiveServer

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8


def cached(server: LiveServer, key: str, **fields: Any) -> int:
    with server.client(key) as client:
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": 1, **fields}
        usage = client.post("/v1/completions", json=body).raise_for_status().json()["usage"]
    tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
    return tokens


def fresh(server: LiveServer) -> None:
    server.wait_idle(ALICE)
    with server.client(ADMIN) as admin:
        admin.post("/v1/cache/clear").raise_for_status()


def test_two_tenants_share_no_block(server: LiveServer) -> None:
    fresh(server)
    assert cached(server, ALICE) == 0
    after_one = server.wait_idle(ALICE)["cached"]
    assert after_one > 1
    assert cached(server, BOB) == 0, "bob gets no hit, and so no timing that tells what alice asked"
    assert server.wait_idle(ALICE)["cached"] == 2 * after_one, "the same prompt is held twice"
    assert cached(server, ALICE) > 64
    assert cached(server, BOB) > 64


def test_tenants_that_say_so_share(server: LiveServer) -> None:
    fresh(server)
    assert cached(server, SHARED[0]) == 0
    held = server.wait_idle(ALICE)["cached"]
    assert cached(server, SHARED[1]) > 64
    assert server.wait_idle(ALICE)["cached"] == held
    assert cached(server, ALICE) == 0, "those who share share among themselves only"


def test_a_cache_salt_separates_within_a_tenant(server: LiveServer) -> None:
    fresh(server)
    assert cached(server, ALICE, cache_salt="one") == 0
    assert cached(server, ALICE, cache_salt="two") == 0
    assert cached(server, ALICE) == 0
    assert cached(server, BOB, cache_salt="one") == 0, "a salt is no way into another tenant's cache"
    assert cached(server, ALICE, cache_salt="one") > 64


def test_prompt_cache_key_and_priority_change_nothing(server: LiveServer) -> None:
    fresh(server)
    assert cached(server, ALICE, prompt_cache_key="a", priority=1) == 0
    assert cached(server, ALICE, prompt_cache_key="b", priority=2) > 64
