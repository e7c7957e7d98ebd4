"""Planned against measured load: what `kvtrove plan` says of a rate and of TPOT, and what a real server does.

    python benchmarks/macro/load_vs_reality.py [--model demo] [--prompt 256] [--new 64] [--users 8] [--json FILE]

Calibrates the engine on this machine and what serving adds to it (served.py), then compares

    λ_max          the planner's largest rate of such requests, with the throughput of a server that always has work:
                   more clients than `--users` sequences, each sending its next request when the last has ended
    TPOT at λ_max  with the median of those requests
    TPOT at half   and TTFT at a share of λ_max (--load): with medians of requests that come at that rate (Poisson)

Every prompt is different, so nothing is reused. The cache must not be what gives out: the planner fills it to 85 % at
most to leave room for bursts, a saturated server fills it whole.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from served import Answer, Asker, asker, calibrate, overhead_of, random_prompt, server

from kvtrove.cli.output import write_json
from kvtrove.names import find_model
from kvtrove.plan.cost import FittedCost
from kvtrove.plan.load import HEADROOM, LoadEstimate, Service, Workload, estimate, max_rate
from kvtrove.plan.source import read_model

BLOCK = 32  # tokens
SPARE_CLIENTS = 4
"""Clients beyond the sequences of a step: a place that gets free is taken at once."""


@dataclass(frozen=True)
class Stated:
    """The load. kv_tokens: size of the cache. users: sequences of a step at most. seconds: of each measurement."""

    model: str
    prompt: int
    new: int
    users: int
    kv_tokens: int
    share: float
    seconds: float

    @property
    def workload(self) -> Workload:
        return Workload(self.prompt, self.new)

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the server."""
        sizes = {"block-size": BLOCK, "num-blocks": self.kv_tokens // BLOCK, "max-num-seqs": self.users}
        return tuple(word for name, value in sizes.items() for word in (f"--{name}", str(value)))


async def saturate(asks: Asker, stated: Stated, vocab: int, duration: float) -> tuple[float, list[Answer]]:
    """(requests per second, answers) once the server is in its steady state. duration: of a request, as planned.

    First answers are of all lengths up to the stated one, so that the sequences of a step are of different ages. The
    rate counts tokens, not ends of requests, over the time from the first two durations on.
    """
    random, answers = Random(1), list[Answer]()
    start = asks.clock() + 2 * duration
    end = start + stated.seconds
    clients = stated.users + SPARE_CLIENTS

    async def client(number: int) -> None:
        new = max(2, stated.new * (number % stated.users + 1) // stated.users)
        while asks.clock() < end:
            answers.append(await asks.ask(random_prompt(random, vocab, stated.prompt), new))
            new = stated.new

    await asyncio.gather(*map(client, range(clients)))
    tokens = sum(count for answer in answers for at, count in answer.arrivals if start <= at < end)
    steady = [answer for answer in answers if start <= answer.first and answer.last < end + duration]
    return tokens / stated.new / stated.seconds, [answer for answer in steady if answer.tokens == stated.new]


async def arrive(asks: Asker, stated: Stated, vocab: int, rate: float) -> list[Answer]:
    """Requests at `rate` per second, Poisson, for the stated time; the first fifth is left out."""
    random, at = Random(2), 0.0
    requests: list[tuple[float, Sequence[int], int]] = []
    while (at := at + random.expovariate(rate)) < stated.seconds:
        requests.append((at, random_prompt(random, vocab, stated.prompt), stated.new))
    answers = await asks.replay(requests)
    return answers[len(answers) // 5 :]


async def measure(url: str, stated: Stated, fit: Any) -> dict[str, Any]:
    vocab = read_model(find_model(stated.model)).vocab_size
    async with asker(url) as asks:
        overhead = await overhead_of(asks, fit, vocab, stated.users)
        most, part = plan(stated, FittedCost(overhead.served(fit)))
        rate, saturated = await saturate(asks, stated, vocab, most.ttft + stated.new * most.tpot)
        answers = await arrive(asks, stated, vocab, part.rate)
    if not answers or not saturated:
        raise SystemExit(f"no request ended within {stated.seconds:g} s: --seconds {4 * stated.seconds:g} may do")
    share = f"at {part.rate:.2f}/s"
    rows = [
        ("λ_max", "requests/s", most.rate, rate),
        ("TPOT at λ_max", "ms", 1e3 * most.tpot, 1e3 * tpot_of(saturated)),
        (f"TPOT {share}", "ms", 1e3 * part.tpot, 1e3 * tpot_of(answers)),
        (f"TTFT {share}", "ms", 1e3 * (part.ttft + overhead.request), 1e3 * median(a.ttft for a in answers)),
    ]
    names = ("figure", "unit", "planned", "measured")
    return {
        "fit": vars(fit),
        "overhead": vars(overhead),
        "planned_batch": {"at λ_max": most.decoding, share: part.decoding},
        "requests": {"at λ_max": len(saturated), share: len(answers)},
        "rows": [{**dict(zip(names, row, strict=True)), "ratio": row[3] / row[2]} for row in rows],
    }


def plan(stated: Stated, cost: FittedCost) -> tuple[LoadEstimate, LoadEstimate]:
    """At the largest rate, and at the stated share of it. SystemExit when the cache would be what gives out."""
    service = Service(cost, stated.kv_tokens, stated.users)
    most = max_rate(stated.workload, service)
    limit = estimate(stated.workload, service, 1.01 * most.rate).bottleneck if most.rate else "KV cache"
    if limit == "KV cache":
        raise SystemExit(f"--kv-tokens {stated.kv_tokens} limit this load; {room(stated)} work")
    return most, estimate(stated.workload, service, stated.share * most.rate)


def tpot_of(answers: Sequence[Answer]) -> float:
    return median(answer.tpot for answer in answers if answer.tpot is not None)


def room(stated: Stated) -> int:
    """Tokens of a cache that the users of a step and a burst of prompts do not fill."""
    one = -(-(stated.prompt + stated.new) // BLOCK) * BLOCK
    return BLOCK * round(2 * one * stated.users / HEADROOM / BLOCK)


def table(found: dict[str, Any]) -> str:
    rows = ["| | planned | measured | measured / planned |", "|---|---|---|---|"]
    for row in found["rows"]:
        values = f"{row['planned']:.2f} {row['unit']} | {row['measured']:.2f} {row['unit']} | {row['ratio']:.3f}"
        rows.append(f"| {row['figure']} | {values} |")
    return "\n".join(rows)


def stated_load(arguments: argparse.Namespace) -> Stated:
    values = {name: getattr(arguments, name) for name in ("model", "prompt", "new", "users", "seconds")}
    stated = Stated(**values, kv_tokens=arguments.kv_tokens or 0, share=arguments.load)
    return stated if arguments.kv_tokens else Stated(**values, kv_tokens=room(stated), share=arguments.load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint directory, or demo")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--users", type=int, default=8, help="sequences in a step at most")
    parser.add_argument("--kv-tokens", type=int, help="size of the cache; left out: twice what the users need")
    parser.add_argument("--load", type=float, default=0.5, help="share of λ_max for the lighter load")
    parser.add_argument("--seconds", type=float, default=40, help="of each of the two measurements")
    parser.add_argument("--json", help="file for all figures; - is standard output, and nothing else is printed there")
    arguments = parser.parse_args()
    if min(arguments.prompt, arguments.users) < 1 or arguments.new < 2 or not 0 < arguments.load < 1:
        parser.error("--prompt and --users must be at least 1, --new at least 2, --load between 0 and 1")
    stated = stated_load(arguments)
    context = max(64, 2 * (stated.prompt + stated.new))
    known = read_model(find_model(stated.model)).max_position
    if context > known:
        parser.error(f"--prompt and --new: the model knows {known} positions; together at most {known // 2} work")
    with tempfile.TemporaryDirectory() as folder:
        fit = calibrate(stated.model, stated.users, context, Path(folder))
    with server(stated.model, *stated.flags) as url:
        found = asyncio.run(measure(url, stated, fit))
    if arguments.json != "-":
        print(table(found))
    write_json({"benchmark": "load_vs_reality", **vars(stated), **found}, arguments.json)


if __name__ == "__main__":
    main()
