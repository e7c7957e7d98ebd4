"""Does memory grow with the requests served? Mixed short ones in a loop, and the resident size every so many of them.

    python benchmarks/macro/memory.py [--server] [--requests 100000] [--seconds S] [--model DIR] [--json FILE]

A bare engine in this process, or with --server a `kvtrove serve` that 32 clients ask at once; its cache of 16 MiB is
full early on. Growth is counted from 5,000 requests on. Requests that are refused are among those of --server. At the
end the server computes long prompts with all their log-probabilities, which are its largest steps, and the most that it
has held is compared with the most that its ledger expects.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from kvtrove.cli.output import write_json
from kvtrove.plan.process import PROC, peak_bytes, resident_bytes

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.0, "logprobs": 5},
    {"n": 3},
    {"use_beam_search": True, "n": 2},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"logit_bias": {"5": 3.0}, "min_tokens": 2},
)
SERVED: tuple[dict[str, Any], ...] = (
    *({**kind, "stream": stream} for kind in KINDS for stream in (False, True) if not (stream and "use_beam" in kind)),
    {"guided_regex": "[a-z]{1,8}"},
    {"guided_choice": ["yes", "no"]},
    {"temperature": 1e39},
)
WORDS = ("the", "cache", "holds", "keys", "and", "values", "of", "every", "token", "that", "a", "model", "has", "read")
SETTLED = 5000


def text(rng: random.Random) -> str:
    return " ".join(
        rng.choice(WORDS) + str(rng.randrange(10**6)) * (rng.random() < 0.2) for _ in range(rng.randrange(2, 60))
    )


class Samples:
    """Resident bytes after every `every` requests, of the process whose /proc directory is `proc`."""

    def __init__(self, every: int, proc: Path) -> None:
        self.every, self.proc, self.done = every, proc, 0
        self.rss = [self._now()]

    def count(self, num: int) -> None:
        before, self.done = self.done, self.done + num
        if before // self.every != self.done // self.every:
            self.rss.append(self._now())
            print(f"{self.done} {self.rss[-1]} MiB", file=sys.stderr, flush=True)

    def _now(self) -> float:
        return round((resident_bytes(self.proc) or 0) / 2**20, 1)

    def report(self) -> dict[str, Any]:
        settled = self.rss[min(len(self.rss) - 1, SETTLED // self.every)]
        growth = round(self.rss[-1] / settled - 1, 4)
        return {"requests": self.done, "rss_mib": self.rss, "growth_after_5000": growth}


def in_process(args: argparse.Namespace, more: Callable[[Samples], bool]) -> dict[str, Any]:
    from kvtrove import LLM, SamplingParams

    llm = LLM(args.model, kv="16MiB", linear=args.linear, warm_up=True, use_tqdm_on_load=False)
    rng, samples = random.Random(0), Samples(args.every, PROC)
    while more(samples):
        kinds = [dict(rng.choice(KINDS)) for _ in range(50)]
        params = []
        for kind in kinds:
            beams = {"beam_width": 3} if kind.pop("use_beam_search", False) else {}
            bias = {int(i): x for i, x in kind.pop("logit_bias", {}).items()}
            params.append(SamplingParams(max_tokens=rng.randrange(2, 12), logit_bias=bias, **kind, **beams))
        llm.generate([text(rng) for _ in kinds], params, use_tqdm=False)
        samples.count(len(kinds))
    ledger = llm.llm_engine.ledger
    return samples.report() | {"ledger_peak_mib": round(ledger.peak / 2**20, 1), "malloc": malloc_info()}


def malloc_info() -> dict[str, int]:
    """MiB of glibc's allocator: got from the system for small things, mapped for large ones, in use, free."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
    Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Info
    info: Any = mallinfo2()
    kept = {"arenas": info.arena, "mapped": info.hblkhd, "in_use": info.uordblks, "free": info.fordblks}
    return {name: size // 2**20 for name, size in kept.items()}


def served(args: argparse.Namespace, more: Callable[[Samples], bool]) -> dict[str, Any]:
    command = [sys.executable, "-m", "kvtrove", "serve", "--port", "0", "--kv", "16MiB", "--linear", args.linear]
    server = subprocess.Popen([*command, args.model], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        address = re.match(r"(http://\S+)/v1 serves", server.stdout.readline())
        if address is None:
            sys.exit("the server did not start")
        samples = Samples(args.every, Path(f"/proc/{server.pid}"))
        asyncio.run(_clients(address[1], samples, more, args.clients))
        asyncio.run(_largest_steps(address[1]))
        process = httpx.get(f"{address[1]}/v1/cache/memory", timeout=30).json()["process"]
        process["peak"] = peak_bytes(samples.proc)
        planned = {"resident": "planned_at_rest", "peak": "planned"}
        over = {name: round(process[name] / process[expected] - 1, 4) for name, expected in planned.items()}
        return samples.report() | {"process": process, "over_the_ledger": over}
    finally:
        server.terminate()
        server.wait(60)


async def _largest_steps(url: str) -> None:
    """Prompts of 2,000 tokens at once, each with what the ledger counts for a step: all log-probabilities."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        bodies = [{"prompt": [n + 2] * 2000, "max_tokens": 1, "echo": True, "logprobs": 5} for n in range(8)]
        for answer in await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies)):
            answer.raise_for_status()


async def _clients(url: str, samples: Samples, more: Callable[[Samples], bool], num_clients: int) -> None:
    async def client(seed: int) -> None:
        rng = random.Random(seed)
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            while more(samples):
                kind = {"max_tokens": rng.randrange(2, 12), **rng.choice(SERVED)}
                if rng.random() < 0.4 and not {"logprobs", "use_beam_search"} & kind.keys():
                    body = {"messages": [{"role": "user", "content": text(rng)}], **kind}
                    answer = await http.post("/v1/chat/completions", json=body)
                else:
                    answer = await http.post("/v1/completions", json={"prompt": text(rng), **kind})
                if answer.status_code not in (200, 400):
                    sys.exit(f"{kind}: {answer.status_code} {answer.text[:300]}")
                samples.count(1)

    await asyncio.gather(*map(client, range(num_clients)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32, help="that ask a server at once")
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--linear", default="own")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    if args.model == "demo" and not args.server:
        from kvtrove.demo import demo_model_dir

        args.model = str(demo_model_dir())
    deadline = time.monotonic() + args.seconds
    result = {"benchmark": "memory", "server": args.server, "linear": args.linear} | (
        served if args.server else in_process
    )(args, lambda samples: samples.done < args.requests and time.monotonic() < deadline)
    write_json(result, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
