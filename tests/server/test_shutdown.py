"""SIGTERM under load, and the end of a process that is told twice. Each test has a server of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.live import LiveServer, running_server

BODY: dict[str, Any] = {"model": "demo", "prompt": "Go", "max_tokens": 300, "ignore_eos": True, "stream": True}


class Reader(threading.Thread):
    """Reads one stream to its end. `lines`: what came; `begun`: the first line is there."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.url, self.body = url, body
        self.lines: list[str] = []
        self.begun = threading.Event()

    def run(self) -> None:
        path = f"{self.url}/v1/completions"
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", path, json=self.body, timeout=60) as answer,
        ):
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)
                    self.begun.set()


def start_readers(server: LiveServer, count: int, **more: Any) -> list[Reader]:
    readers = [Reader(server.url, BODY | more) for _ in range(count)]
    for reader in readers:
        reader.start()
    for reader in readers:
        assert reader.begun.wait(20)
    return readers


def wait_draining(url: str) -> None:
    deadline = time.monotonic() + 5
    while httpx.get(f"{url}/health").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_accepted_is_finished_and_the_port_is_free_again(tmp_path: Path) -> None:
    with running_server(tmp_path, "--num-blocks", "200", "--log-json") as server:
        server.process.send_signal(signal.SIGHUP)  # does not end the process
        readers = start_readers(server, 4)
        assert "there is no file of keys to read again" in server.log.read_text()
        server.process.send_signal(signal.SIGTERM)
        wait_draining(server.url)
        health = httpx.get(f"{server.url}/health").json()
        assert health == {"status": "draining", "live": True, "ready": False, "draining": True}
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        late = httpx.post(f"{server.url}/v1/completions", json=BODY)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
        assert server.process.wait(30) == 0
        for reader in readers:
            reader.join(5)
            assert reader.lines[-1] == "data: [DONE]"
            texts = [json.loads(line[6:])["choices"][0] for line in reader.lines[:-1]]
            assert texts[-1]["finish_reason"] == "length"
        address = urlsplit(server.url)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((address.hostname, address.port))
        records = [json.loads(line) for line in server.log.read_text().splitlines()]
        served = [r for r in records if r.get("path") == "/v1/completions" and r["status"] == 200]
        assert len(served) == 4
        assert len({r["request_id"] for r in served}) == 4


@pytest.mark.parametrize("second", [False, True])
def test_those_who_take_too_long_are_told(tmp_path: Path, second: bool) -> None:
    """After the drain timeout everyone gets an error event; a second signal ends the process at once."""
    flags = ("--drain-timeout", "30" if second else "0.3")
    with running_server(tmp_path, *flags, module="tests.server.fake_engine") as server:
        [reader] = start_readers(server, 1, max_tokens=4000)
        server.process.send_signal(signal.SIGTERM)
        wait_draining(server.url)
        if second:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(2) == 128 + signal.SIGTERM
            return
        assert server.process.wait(10) == 0
        reader.join(5)
        assert reader.lines[-1] == "data: [DONE]"
        assert json.loads(reader.lines[-2][6:])["error"]["code"] == "shut_down"
