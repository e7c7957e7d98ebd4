"""What stands on the wire: odd heads, lengths, encodings and numbers. Every answer is whole, and the server stays."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import ALICE, MAX_BODY
from tests.server.live import LiveServer

BODY = b'{"prompt": "x", "max_tokens": 1}'
KEY = f"host: 127.0.0.1\r\nauthorization: Bearer {ALICE}\r\ncontent-type: application/json\r\n".encode()
POST = b"POST /v1/completions HTTP/1.1\r\n" + KEY
LENGTH, CLOSE, CHUNKED = b"content-length: %d\r\n", b"connection: close\r\n", b"transfer-encoding: chunked\r\n"
WHOLE = LENGTH % len(BODY)
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
LARGE = 3 * MAX_BODY

REQUESTS = {
    "HTTP/1.0": (b"POST /v1/completions HTTP/1.0\r\n" + KEY + WHOLE + b"\r\n" + BODY, [200]),
    "chunks and trailers": (POST + CLOSE + CHUNKED + b"\r\n" + CHUNK + b"0\r\nx-sum: 1\r\n\r\n", [200]),
    "a chunk with an extension": (
        POST + CLOSE + CHUNKED + b"\r\n" + CHUNK.replace(b"\r", b";a=b\r", 1) + b"0\r\n\r\n",
        [200],
    ),
    "two lengths": (POST + WHOLE + CHUNKED + b"\r\n" + CHUNK + b"0\r\n\r\n", [400]),
    "one length twice": (POST + WHOLE + LENGTH % 3 + b"\r\n" + BODY, [400]),
    "a length below zero": (POST + LENGTH % -1 + b"\r\n" + BODY, [400]),
    "pipelined": ((POST + WHOLE + b"\r\n" + BODY) * 3 + POST + CLOSE + WHOLE + b"\r\n" + BODY, [200] * 4),
    "too large": (POST + LENGTH % LARGE + b"\r\n" + b" " * LARGE, [413]),
    "too large in chunks": (POST + CHUNKED + b"\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, b" " * LARGE), [413]),
    "too large, and waits to be asked": (POST + b"expect: 100-continue\r\n" + LENGTH % LARGE + b"\r\n", [413]),
    "a key that is no text": (
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: \xff\xfe\r\n" + CLOSE + b"\r\n",
        [401],
    ),
    "a path without end": (b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n" + KEY + CLOSE + b"\r\n", [404]),
}


def exchange(url: str, request: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(2**16):
            answer += part
    return answer


@pytest.mark.parametrize("name", REQUESTS)
def test_odd_requests_get_whole_answers(server: LiveServer, name: str) -> None:
    request, statuses = REQUESTS[name]
    answer = exchange(server.url, request)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == statuses
    assert len(answer) < 4096 * len(statuses), "what was sent is not sent back"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
@pytest.mark.parametrize("stream", [False, True])
def test_numbers_that_json_lacks_come_back_as_null(alice: httpx.Client, number: str, stream: bool) -> None:
    body = f'{{"input": "x", "max_output_tokens": 1, "stream": {json.dumps(stream)}, "text": {{"a": [{number}]}}}}'
    answer = alice.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    last = json.loads(lines[-1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert last.get("response", last)["text"]["a"] == [None]


def test_a_stream_may_be_left_at_any_byte(server: LiveServer) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 30, "stream": true, "n": 2}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\n" + KEY + LENGTH % len(body) + b"\r\n" + body
    address = urlsplit(server.url)
    for end in (*range(1, 400, 57), *range(400, 4000, 600)):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(request)
            left = end
            while left and (part := connection.recv(left)):
                left -= len(part)
    server.wait_idle(ALICE)
