"""Administrators pin prompts: what is pinned survives pressure, and never takes what a request needs to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.live import LiveServer, running_server

ADMIN, USER = "an-administrators-key-1", "an-ordinary-users-key-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = tmp_path_factory.mktemp("pins")
    flags = ("--num-blocks", "64", "--max-model-len", "512", "--max-num-batched-tokens", "256", "--block-size", "32")
    with running_server(folder, *flags, KVTROVE_API_KEY=USER, KVTROVE_ADMIN_KEY=ADMIN) as live:
        yield live


def complete(server: LiveServer, prompt: list[int]) -> int:
    """Runs a prompt; returns how many of its tokens came from the cache."""
    with server.client(USER) as client:
        body = {"prompt": prompt, "max_tokens": 1}
        answer = client.post("/v1/completions", json=body).raise_for_status().json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def pin(server: LiveServer, prompt: list[int]) -> httpx.Response:
    with server.client(ADMIN) as admin:
        return admin.post("/v1/cache/pins", json={"prompt": prompt, "tenant": "default"})


def fill(server: LiveServer) -> None:
    """More prompts than the pool of 64 blocks holds."""
    for first in range(3, 13):
        complete(server, [first, *range(3, 300)])


def test_a_pinned_prompt_survives_pressure_and_an_unpinned_one_does_not(server: LiveServer) -> None:
    kept, lost = [100, *range(3, 130)], [200, *range(3, 130)]
    for prompt in (kept, lost):
        complete(server, prompt)
    answer = pin(server, kept).raise_for_status().json()
    assert (answer["tokens"], answer["blocks"]) == (128, 4)
    fill(server)
    assert complete(server, kept) == 96
    assert complete(server, lost) == 0
    with server.client(ADMIN) as admin:
        assert admin.get("/v1/cache/pins").json() == [answer]
        assert admin.delete(f"/v1/cache/pins/{answer['id']}").json() == answer
        assert admin.delete(f"/v1/cache/pins/{answer['id']}").status_code == 404
    fill(server)
    assert complete(server, kept) == 0
    assert server.wait_idle(USER)["used"] == 0


def test_what_cannot_be_pinned_is_refused_in_words(server: LiveServer) -> None:
    assert "nothing of this prompt is cached" in pin(server, [300, 301, 302]).json()["error"]["message"]
    assert pin(server, [10**9]).status_code == 400
    with server.client(USER) as user:
        assert user.post("/v1/cache/pins", json={"prompt": "x"}).status_code == 403


def test_pins_leave_room_for_the_longest_request(server: LiveServer) -> None:
    pinned = []
    for first in range(400, 404):
        prompt = [first, *range(3, 500)]
        complete(server, prompt)
        answer = pin(server, prompt)
        if answer.status_code == 400:
            assert "would leave too little for a request of 512 tokens" in answer.json()["error"]["message"]
            break
        pinned.append(answer.json()["id"])
    else:
        raise AssertionError("60 of 64 blocks could be pinned")
    assert pinned
    assert complete(server, [50, *range(3, 500)]) >= 0, "the longest request still runs"
    with server.client(ADMIN) as admin:
        for pin_id in pinned:
            admin.delete(f"/v1/cache/pins/{pin_id}").raise_for_status()
    assert server.wait_idle(USER)["used"] == 0
