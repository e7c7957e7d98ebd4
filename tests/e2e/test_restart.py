"""A server is killed in the midst of an answer. Started again, it finds the chat on disk and continues the answer."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app
from tests.checkpoints import make_checkpoint
from tests.server.live import LiveServer, running_server

ADMIN, USER = "an-administrators-key-1", "an-ordinary-users-key-1"
KEYS = {"KVTROVE_API_KEY": USER, "KVTROVE_ADMIN_KEY": ADMIN}
FLAGS = ("--dtype", "float32", "--num-blocks", "200", "--block-size", "16", "--no-warm-up", "--backup-interval", "8")
OWNER = {"tenant": "default"}
SYSTEM = {"role": "system", "content": "You are a patient teacher who tells of rivers and seas. " * 6}
LONG: dict[str, Any] = {"model": "demo", "max_tokens": 96, "temperature": 0.7, "seed": 3, "ignore_eos": True}


def ask(server: LiveServer, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    with server.client(USER) as client:
        body = {**LONG, "messages": messages, "cache_report": True, **more}
        return client.post("/v1/chat/completions", json=body).raise_for_status().json()


def begin_and_kill(server: LiveServer, messages: list[dict[str, str]], folder: Path) -> int:
    """Kill the server once it has written two backups of an answer; returns how much of it the client had."""
    had, written = 0, set()
    body = {**LONG, "messages": messages, "stream": True}
    with server.client(USER) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                had += len(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
            written |= {file.stat().st_mtime_ns for file in folder.glob("*.backup")}
            if len(written) >= 2:
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait()
                return had
    raise AssertionError("the answer ended before it was kept twice")


@pytest.mark.timeout(180)
def test_a_server_that_is_killed_continues_the_answer(tmp_path: Path) -> None:
    flags = (*FLAGS, "--kv-dir", str(tmp_path / "kv"))
    turns = [SYSTEM, {"role": "user", "content": "Tell me about rivers. " * 8}]
    with running_server(tmp_path, *flags, **KEYS) as server:
        first = ask(server, turns, max_tokens=40)
        turns += [first["choices"][0]["message"], {"role": "user", "content": "And what of the sea? " * 8}]
        time.sleep(0.3)
        had = begin_and_kill(server, turns, tmp_path / "kv" / "checkpoints")
    with running_server(tmp_path, *flags, **KEYS) as server:
        answer = ask(server, turns)
        report = answer["kvtrove"]["cache_report"]
        assert had
        assert report["continued_tokens"] >= 8
        assert report["reused_from"]["disk"] >= 0.95 * (report["prompt_tokens"] - 16), "all full blocks, from the disk"
        cold = ask(server, turns, cache_salt="computed from the start")
        assert cold["kvtrove"]["cache_report"]["reused_tokens"] == 0
        assert "continued_tokens" not in cold["kvtrove"]["cache_report"]
        assert answer["choices"] == cold["choices"], "as if nothing had happened"
        assert answer["usage"]["completion_tokens"] == 96
        with server.client(USER) as client:
            metrics = client.get("/metrics").text
        assert 'kvtrove_checkpoints_total{event="continued"} 1.0' in metrics
        checkpoints_by_name(server, turns)
        archives_from_the_command_line(server, turns)
        assert list((tmp_path / "kv" / "checkpoints").glob("*.backup")) == []


@pytest.mark.timeout(180)
def test_a_hybrid_that_is_killed_continues_on_its_states(tmp_path: Path) -> None:
    """Blocks and checkpoints of running states come back from the disk, the states of the answer from its backup."""
    make_checkpoint(tmp_path / "model", "qwen3_5", max_position_embeddings=4096)
    flags = (str(tmp_path / "model"), "--served-model-name", "demo", *FLAGS, "--kv-dir", str(tmp_path / "kv"))
    turns = [SYSTEM, {"role": "user", "content": "Tell me about rivers. " * 8}]
    with running_server(tmp_path, *flags, **KEYS) as server:
        before = ask(server, turns, max_tokens=40)
        time.sleep(0.5)  # a server without work saves what it has
        begin_and_kill(server, turns, tmp_path / "kv" / "checkpoints")
    with running_server(tmp_path, *flags, **KEYS) as server:
        after, short = ask(server, turns), ask(server, turns, max_tokens=40)
        cold = ask(server, turns, cache_salt="another")
        report = after["kvtrove"]["cache_report"]
        assert report["continued_tokens"] >= 8
        assert report["reused_from"]["disk"] >= 0.95 * (report["prompt_tokens"] - 16)
        assert after["choices"] == cold["choices"]
        assert before["choices"] == short["choices"]
        checkpoints_by_name(server, turns)


def checkpoints_by_name(server: LiveServer, turns: list[dict[str, str]]) -> None:
    """The routes of administrators."""
    with server.client(ADMIN) as client:
        tokens = client.post("/tokenize", json={"model": "demo", "messages": turns}).json()["tokens"]
        asked = {"name": "rivers", "prompt": tokens, **OWNER}
        made = client.post("/v1/cache/checkpoints", json=asked).raise_for_status().json()
        listed = client.get("/v1/cache/checkpoints").json()["data"]
        assert [made] == listed
        client.post("/v1/cache/clear")
        back = client.post("/v1/cache/checkpoints/rivers/restore", json=OWNER).raise_for_status().json()
        assert back["cached_tokens"] == len(tokens) // 16 * 16 > 0
        assert client.delete("/v1/cache/checkpoints/rivers").json() == made
        for name, status in (("rivers", 404), ("%2e%2e%2fx", 404), ("-x", 400)):
            assert client.post(f"/v1/cache/checkpoints/{name}/restore", json=OWNER).status_code == status
        for wrong in ({"name": "../x", "prompt": [1]}, {"name": "x"}, {"name": "x", "request_id": "chatcmpl-1"}):
            refused = client.post("/v1/cache/checkpoints", json=wrong)
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["param"] in ("name", "request_id")


def archives_from_the_command_line(server: LiveServer, turns: list[dict[str, str]]) -> None:
    """Smaller, priced, and for nobody who does not name them."""
    where = ["--tenant", "default", "--url", server.url, "--api-key", ADMIN, "--json"]
    ask(server, turns, max_tokens=2, prompt_cache_key="rivers")

    def cache(*words: str) -> dict[str, Any]:
        return json.loads(CliRunner().invoke(app, ["cache", *words, *where]).stdout)

    price = cache("checkpoint", "small", "--session", "rivers", "--archive", "lowrank=0.5+int8")["price"]
    assert price["row_bytes"] < 0.5 * price["exact_row_bytes"]
    assert 0 < price["error"] < 1
    back = cache("restore", "small")
    assert (back["archive"], back["error"], back["continues"]) == ("lowrank=0.5+int8", price["error"], False)
    named = ask(server, turns, max_tokens=2, cache_salt=back["cache_salt"])["kvtrove"]["cache_report"]
    assert named["reused_tokens"] == back["cached_tokens"] > 0
    server.client(ADMIN).delete("/v1/cache/checkpoints/small").raise_for_status()
