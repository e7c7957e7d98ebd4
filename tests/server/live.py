"""A real server process for tests: `kvtrove serve` on the embedded model, on a port of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import kvtrove
from kvtrove.demo import demo_model_dir
from kvtrove.models.config_reader import read_spec

SPEC = read_spec(demo_model_dir())
CONTEXT, VOCAB = SPEC.max_position, SPEC.vocab_size
START_TIMEOUT = 60.0  # seconds; importing torch takes most of it


@dataclass
class LiveServer:
    """`url` has no path. `log`: what the process wrote to stderr, in a file. `first_line`: of its output."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    first_line: str = ""

    def client(self, key: str | None = None, **settings: Any) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **settings)

    def blocks(self, key: str | None = None) -> dict[str, int]:
        """used, cached and free blocks, as the engine counts them between two steps."""
        with self.client(key) as client:
            [device] = client.get("/v1/cache/memory").raise_for_status().json()["devices"]
        return {name: device["kv_cache"][f"{name}_blocks"] for name in ("used", "cached", "free", "num")[:3]}

    def wait_idle(self, key: str | None = None, seconds: float = 5.0) -> dict[str, int]:
        """The blocks once none is used; AssertionError when that does not come."""
        deadline = time.monotonic() + seconds
        while (blocks := self.blocks(key))["used"]:
            assert time.monotonic() < deadline, f"blocks are still held: {blocks}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.02)
        return blocks


@contextmanager
def running_server(folder: Path, *flags: str, module: str = "kvtrove", **environment: str) -> Iterator[LiveServer]:
    """Start it, wait for its address, and end it however the test ends."""
    source = os.pathsep.join((str(Path(kvtrove.__file__).parents[1]), str(Path(__file__).parents[2])))
    env = {name: value for name, value in os.environ.items() if not name.startswith("KVTROVE_")}
    env |= {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "KVTROVE_CHECK": "1", "PYTHONUNBUFFERED": "1", **environment}
    log = folder / "server.log"
    start = ["serve", "--port", "0"] if module == "kvtrove" else []
    command = [sys.executable, "-m", module, *start, *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # ends when the process does
        found = re.match(r"(http://\S+)/v1 serves", line)
        assert found, f"no address in {line!r}; log: {log.read_text()[-3000:]}"
        _wait_ready(found[1])
        yield LiveServer(found[1], process, log, line)
    finally:
        process.kill()
        process.wait()


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.05)
