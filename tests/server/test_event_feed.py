"""KV events over HTTP: what a router that only follows the stream believes is what the cache holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer, running_server

ADMIN, USER = "an-administrators-key-1", "an-ordinary-users-key-1"
FLAGS = ("--num-blocks", "24", "--max-model-len", "256", "--block-size", "16", "--no-warm-up")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = tmp_path_factory.mktemp("events")
    with running_server(folder, *FLAGS, KVTROVE_API_KEY=USER, KVTROVE_ADMIN_KEY=ADMIN) as live:
        yield live


class Router:
    """Follows a stream. blocks: hash -> (parent, tokens) of what the cache must hold."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, list[int]]] = {}
        self.removed = self.last_id = 0

    def read(self, lines: Iterator[str], until: Any) -> None:
        for line in lines:
            if line.startswith("id: "):
                self.last_id = int(line[4:])
            if line.startswith("data: "):
                for event in json.loads(line[6:])["events"]:
                    self.apply(event)
                if until(self):
                    return

    def apply(self, event: dict[str, Any]) -> None:
        if event["type"] == "AllBlocksCleared":
            self.blocks.clear()
        elif event["type"] == "BlockRemoved":
            for name in event["block_hashes"]:
                del self.blocks[name]
                self.removed += 1
        else:
            assert (event["block_size"], event["medium"], len(event["token_ids"])) == (16, "CPU", 16)
            parent = event["parent_block_hash"]
            for name in event["block_hashes"]:
                self.blocks[name] = parent, event["token_ids"]


def complete(server: LiveServer, first: int) -> list[int]:
    prompt = [first, *range(3, 130)]
    with server.client(USER) as client:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
        client.post("/v1/completions", json=body).raise_for_status()
    return prompt


def test_a_router_that_follows_knows_what_is_cached(server: LiveServer) -> None:
    early = complete(server, 40)
    router = Router()
    with server.client(ADMIN) as client, client.stream("GET", "/v1/cache/events") as stream:
        lines = stream.iter_lines()
        router.read(lines, lambda r: len(r.blocks) == 8)
        chain, parent = [], None
        for _ in range(8):
            parent, tokens = next((name, t) for name, (p, t) in router.blocks.items() if p == parent)
            chain += tokens
        assert chain == early, "the first batch has what was cached before, with its order"
        for first in range(50, 54):
            complete(server, first)
        router.read(lines, lambda r: r.removed >= 16)
    held = server.wait_idle(USER)["cached"]
    with server.client(ADMIN) as client:
        headers = {"last-event-id": str(router.last_id)}
        client.post("/v1/cache/clear").raise_for_status()
        with client.stream("GET", "/v1/cache/events", headers=headers) as stream:
            router.read(stream.iter_lines(), lambda r: not r.blocks)
    assert held == 24
    assert router.blocks == {}, "a router that comes back reads on where it was"


def test_it_is_for_administrators(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/v1/cache/events", headers={"authorization": f"Bearer {USER}"}).status_code == 403
