"""A crowd of clients, a third of whom hang up and some of whom send garbage, for as long as wanted:

    python -m tests.server.soak --seconds 600 --clients 64

Prints what was answered, how the memory of the server grew, and fails on any 5xx, leaked block or dead process.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.server.live import LiveServer, running_server

FLAGS = ("--num-blocks", "256", "--max-queue", "512", "--log-level", "warning")
GARBAGE = (b"", b"{", b"[]", b"null", b'{"prompt": 7}', b'{"prompt": "x", "n": -1}', b"\xff\x00", b'{"messages": [{}]}')


@dataclass
class Tally:
    """Answers by status, hang-ups, and the server's resident memory in MiB over time."""

    answers: Counter[int] = field(default_factory=Counter)
    hang_ups: int = 0
    memory: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MiB between the first and the last third."""
        third = max(1, len(self.memory) // 3)
        return sum(self.memory[-third:]) / third - sum(self.memory[third : 2 * third] or self.memory[:third]) / third


def resident(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def body(dice: random.Random) -> dict[str, Any]:
    shared = "You are one of many clients of this server. " * dice.randint(0, 6)
    fields: dict[str, Any] = {"prompt": f"{shared}{dice.random()}"}
    fields |= {"max_tokens": dice.randint(1, 60), "n": dice.choice([1, 1, 1, 2, 4])}
    if dice.random() < 0.1:
        fields["guided_regex"] = "[a-z]{1,20}"
    if dice.random() < 0.1:
        fields |= {"echo": True, "logprobs": 1}
    return fields


async def client(url: str, seed: int, until: float, tally: Tally) -> None:
    dice = random.Random(seed)
    while time.monotonic() < until:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            await one_visit(http, dice, tally)


async def one_visit(http: httpx.AsyncClient, dice: random.Random, tally: Tally) -> None:
    """A few requests over one connection; the last of them may be left in the middle."""
    path, header = "/v1/completions", {"content-type": "application/json"}
    for _ in range(dice.randint(1, 4)):
        if dice.random() < 0.15:
            answer = await http.post(path, content=dice.choice(GARBAGE), headers=header)
            tally.answers[answer.status_code] += 1
        elif dice.random() < 0.33:
            await hang_up(http, dice, tally)
            return
        else:
            stream = dice.random() < 0.5
            answer = await http.post(path, json=body(dice) | {"stream": stream})
            tally.answers[answer.status_code] += 1
            if stream and answer.status_code == 200:
                assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-300:]


async def hang_up(http: httpx.AsyncClient, dice: random.Random, tally: Tally) -> None:
    request = body(dice) | {"max_tokens": 400, "ignore_eos": True, "stream": dice.random() < 0.7}
    request.pop("guided_regex", None)
    try:
        async with asyncio.timeout(dice.uniform(0.01, 1.0)):
            await http.post("/v1/completions", json=request)
    except TimeoutError:
        tally.hang_ups += 1


async def crowd(server: LiveServer, seconds: float, clients: int) -> Tally:
    """Let them loose; AssertionError when one of them is served badly."""
    tally, until = Tally(), time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < until:
            tally.memory.append(resident(server.process.pid))
            await asyncio.sleep(seconds / 30)

    await asyncio.gather(watch(), *(client(server.url, seed, until, tally) for seed in range(clients)))
    return tally


def check(server: LiveServer, tally: Tally) -> dict[str, int]:
    """AssertionError on a 5xx, a dead process or a leaked block; returns the blocks at the end."""
    assert server.process.poll() is None, server.log.read_text()[-3000:]
    assert not [status for status in tally.answers if status >= 500], f"{tally}\n{server.log.read_text()[-3000:]}"
    blocks = server.wait_idle()
    assert sum(blocks.values()) == 256, blocks
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), *FLAGS) as server:
        tally = asyncio.run(crowd(server, arguments.seconds, arguments.clients))
        blocks = check(server, tally)
    print(
        f"{arguments.seconds:g} s, {arguments.clients} clients: {tally.hang_ups} hang-ups, answers by status", end=" "
    )
    print(f"{dict(sorted(tally.answers.items()))}, blocks {blocks}", end=", ")
    print(f"memory {tally.memory[-1]:.0f} MiB, grew by {tally.growth:+.1f} MiB")


if __name__ == "__main__":
    main()
