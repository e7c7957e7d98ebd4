"""Clients that hang up: what they held is free at once, and nobody else notices."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import ALICE
from tests.server.live import LiveServer

LONG: dict[str, Any] = {"model": "demo", "prompt": "Go on " * 20, "max_tokens": 3000, "ignore_eos": True}


def in_use(server: LiveServer) -> int:
    return server.blocks(ALICE)["used"]


def wait_running(server: LiveServer) -> None:
    deadline = time.monotonic() + 10
    while not in_use(server):
        assert time.monotonic() < deadline, "the request never started"
        time.sleep(0.01)


def test_leaving_a_stream_frees_its_blocks(server: LiveServer) -> None:
    before = server.wait_idle(ALICE)
    body = LONG | {"stream": True, "n": 3}
    with server.client(ALICE) as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        for _ in range(12):
            next(lines)
        assert in_use(server) > 0
    after = server.wait_idle(ALICE, seconds=2)
    assert sum(after.values()) == sum(before.values())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_is_reset_frees_its_blocks(server: LiveServer, path: str, stream: bool) -> None:
    """Closed with RST after sending, as a killed client's is."""
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Go on"}], "max_tokens": 3000, "ignore_eos": True}
    bodies = {"/v1/completions": LONG, "/v1/responses": {"model": "demo", "input": "Go on", "ignore_eos": True}}
    body = json.dumps(bodies.get(path, chat) | {"stream": stream}).encode()
    address = urlsplit(server.url)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + body)
    wait_running(server)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    server.wait_idle(ALICE, seconds=2)


def test_others_go_on(server: LiveServer) -> None:
    path = "/v1/completions"
    body = {"model": "demo", "prompt": "Undisturbed", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    with server.client(ALICE) as client, server.client(ALICE) as leaver:
        alone = client.post(path, json=body).json()["choices"][0]["text"]
        with client.stream("POST", path, json=body | {"stream": True}) as kept:
            with leaver.stream("POST", path, json=LONG | {"stream": True}) as left:
                next(left.iter_lines())
            chunks = [json.loads(line[6:]) for line in kept.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == alone
    server.wait_idle(ALICE)


def test_a_body_that_never_comes_holds_nothing(server: LiveServer) -> None:
    address = urlsplit(server.url)
    lines = ("POST /v1/completions HTTP/1.1", "host: x", f"authorization: Bearer {ALICE}", "content-length: 99", "", "")
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert httpx.get(f"{server.url}/health").status_code == 200
    server.wait_idle(ALICE)
