"""Several models behind one address: real processes, one of which fits the budget at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from tests.server.live import running_server

ADMIN, USER = "admin-key-admin-key", "user-key-user-key-1"
MODELS = """
    [first]
    model = "demo"
    aliases = ["gpt-4o-mini"]
    max_num_seqs = 8
    kv = "64MiB"
    kv_dir = "{kv_dir}"
    [second]
    model = "demo"
    max_num_seqs = 8
    kv = "64MiB"
"""


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_two_models_within_the_memory_of_one(tmp_path: Path) -> None:
    """Loaded by their first request, one making room for the other; killed and started again; gone with the server."""
    (tmp_path / "models.toml").write_text(MODELS.format(kv_dir=tmp_path / "kv"))
    flags = ("--models", str(tmp_path / "models.toml"), "--memory", "900MiB", "--no-warm-up")
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    with running_server(tmp_path, *flags, KVTROVE_API_KEY=USER, KVTROVE_ADMIN_KEY=ADMIN) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0)

        def states() -> dict[str, str]:
            return {card.id: card.model_extra["state"] for card in client.models.list()}  # type: ignore[index]

        names = ("first", "gpt-4o-mini", "second")
        assert states() == dict.fromkeys(names, "asleep")
        one = client.chat.completions.create(model="gpt-4o-mini", **asked)
        long = asked | {"messages": [{"role": "user", "content": "Which blocks are kept? " * 20}]}
        client.chat.completions.create(model="first", **long)
        page = httpx.get(f"{server.url}/", headers={"authorization": f"Bearer {USER}"})
        assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
        assert states() == dict.fromkeys(names, "asleep") | {"first": "ready", "gpt-4o-mini": "ready"}
        streamed = client.chat.completions.create(model="second", stream=True, **asked)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert states() == dict.fromkeys(names, "asleep") | {"second": "ready"}
        assert text == one.choices[0].message.content, "the same weights"

        [process] = children_of(server.process.pid)
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while states()["second"] == "ready":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        again = client.chat.completions.create(model="second", **asked)
        assert again.choices[0].message.content == text

        with server.client(ADMIN) as admin:
            metrics = admin.get("/metrics").text
            assert 'kvtrove_model_loaded{model="second"} 1' in metrics
            assert 'kvtrove_generation_tokens_total{model="second"}' in metrics
            assert admin.post("/v1/models/second/unload").json()["state"] == "unloaded"
            refused = httpx.post(
                f"{server.url}/v1/chat/completions",
                json={"model": "second", **asked},
                headers={"authorization": f"Bearer {USER}"},
            )
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unloaded")
            assert admin.post("/v1/models/first/load").json()["state"] == "ready"
        warm = client.chat.completions.create(model="first", **long)
        assert warm.usage.prompt_tokens_details.cached_tokens >= 32, "it comes back with its cache"
        [process] = children_of(server.process.pid)
        server.process.kill()
        deadline = time.monotonic() + 15
        while Path(f"/proc/{process}/cmdline").exists() and Path(f"/proc/{process}/cmdline").read_bytes():
            assert time.monotonic() < deadline, "the process of a model outlives the server"
            time.sleep(0.02)
