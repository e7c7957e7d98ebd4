"""Soak test of a server: many clients at once, a third of which hang up in the middle, some of which send garbage.

    python benchmarks/macro/soak.py [--seconds 600] [--clients 64] [--json FILE]

Starts `kvtrove serve` on the embedded model, on a port of its own on loopback. At the end every block must be free
again and no answer may have been a 500. Prints what was seen as JSON; exit code 1 when one of the claims does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from kvtrove.cli.output import write_json

POOL = "16MiB"  # small enough to be full after a minute: what grows then is a leak
GARBAGE = (
    ("/v1/chat/completions", b"{"),
    ("/v1/chat/completions", b'{"messages": 5}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}'),
    ("/v1/completions", b'{"prompt": [999999999], "max_tokens": 4}'),
    ("/v1/completions", b'{"prompt": "x", "temperature": "warm"}'),
    ("/v1/completions", b"\xff\xfe\x00"),
    ("/v1/nothing", b"{}"),
)


@dataclass
class Seen:
    """Statuses of finished exchanges ("hung up" for those we left), and the server's resident memory over time."""

    statuses: Counter[str] = field(default_factory=Counter)
    rss: list[int] = field(default_factory=list)


async def talk(client: httpx.AsyncClient, rng: random.Random, seen: Seen) -> None:
    """One streamed chat about a topic that others share; a third of the clients leave after a few chunks."""
    patience = rng.randint(0, 6) if rng.random() < 1 / 3 else None
    body = {
        "messages": [
            {"role": "system", "content": f"Topic {rng.randint(0, 7)}: " + "remember what you are told. " * 20},
            {"role": "user", "content": "word " * rng.randint(1, 60)},
        ],
        "stream": True,
        "max_tokens": rng.randint(1, 48),
        "n": rng.choice((1, 1, 1, 2)),
        "ignore_eos": True,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = 0
        async for _ in response.aiter_lines():
            chunks += 1
            if patience is not None and chunks > patience:
                seen.statuses["hung up"] += 1
                return
        seen.statuses[str(response.status_code)] += 1


async def send_garbage(client: httpx.AsyncClient, rng: random.Random, seen: Seen) -> None:
    path, content = rng.choice(GARBAGE)
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    seen.statuses[str(response.status_code)] += 1


async def one_client(url: str, seed: int, deadline: float, seen: Seen) -> None:
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        garbage = seed % 8 == 0  # so that a short test on a busy machine has some too
        while time.monotonic() < deadline:
            try:
                await (send_garbage if garbage or rng.random() < 0.1 else talk)(client, rng, seen)
                garbage = False
            except httpx.TransportError as error:
                seen.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.1)


async def watch_memory(pid: int, deadline: float, seen: Seen) -> None:
    while time.monotonic() < deadline:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        seen.rss.append(int(fields["VmRSS"].split()[0]) * 1024)
        await asyncio.sleep(1)


async def soak(url: str, pid: int, clients: int, seconds: float) -> Seen:
    seen, deadline = Seen(), time.monotonic() + seconds
    await asyncio.gather(
        watch_memory(pid, deadline, seen), *(one_client(url, seed, deadline, seen) for seed in range(clients))
    )
    return seen


def idle_blocks(url: str, seconds: float = 10) -> dict[str, int]:
    """The block counts once none is used, or those after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        [device] = httpx.get(f"{url}/v1/cache/memory", timeout=30).raise_for_status().json()["devices"]
        blocks = {f"{kind}_blocks": device["kv_cache"][f"{kind}_blocks"] for kind in ("used", "cached", "free", "num")}
        if blocks["used_blocks"] == 0 or time.monotonic() > deadline:
            return blocks
        time.sleep(0.1)


def report(seen: Seen, blocks: dict[str, int], seconds: float, clients: int) -> dict[str, object]:
    third = max(1, len(seen.rss) // 3)
    early, late = statistics.median(seen.rss[third : 2 * third] or seen.rss), statistics.median(seen.rss[-third:])
    failures = {status: count for status, count in seen.statuses.items() if status.startswith("5") and status != "503"}
    leaked = blocks["num_blocks"] - blocks["free_blocks"] - blocks["cached_blocks"]
    return {
        "benchmark": "soak",
        "seconds": seconds,
        "clients": clients,
        "statuses": dict(sorted(seen.statuses.items())),
        "server_errors": sum(failures.values()),
        "blocks": blocks,
        "leaked_blocks": leaked,
        "rss_mib_middle_third": round(early / 2**20, 1),
        "rss_mib_last_third": round(late / 2**20, 1),
        "ok": not failures and leaked == 0 and seen.statuses["200"] > 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    command = [sys.executable, "-m", "kvtrove", "serve", "--port", "0", "--kv", POOL]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.match(r"(http://\S+)/v1 serves", line)
        if address is None:
            sys.exit(f"the server did not start: {line!r}")
        seen = asyncio.run(soak(address[1], server.pid, args.clients, args.seconds))
        result = report(seen, idle_blocks(address[1]), args.seconds, args.clients)
    finally:
        server.terminate()
        server.wait(60)
    write_json(result, args.json)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
