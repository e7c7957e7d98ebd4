"""Simulator against reality: one trace through `kvtrove.plan.simulate` and through a real `kvtrove serve`.

    python benchmarks/macro/simulator_vs_server.py [--model demo] [--requests 200] [--load 0.55] [--json FILE]
    python benchmarks/macro/simulator_vs_server.py --hits-only [--kv-tokens 5120]

The trace is made from a seed: conversations whose every turn repeats the prompt before it and adds to it, as a file of
WEKA's format (one session a line, blocks of 32 tokens). The server gets the same blocks as token ids, at the trace's
times, and answers of the trace's lengths. Compared are the token hit ratio, which must be equal, and the medians of
TTFT and TPOT. The simulator's step costs are the calibration of the engine on this machine, with what serving adds to a
step, a sequence and a request (served.py); requests come at `--load` of the largest rate that the planner then allows.

Two requests that share a beginning hit only if the first has computed it when the second comes. A turn therefore comes
at least SETTLE arrivals after the one before; `races` counts the turns that came too early all the same, in either
world. Who leaves a cache that is full depends on who ended first, so by default the cache holds the whole trace.

--hits-only measures no time: every request is sent when the one before has ended, so that the order in which blocks are
used is the same in both worlds and the ratio must be equal with a cache that has to evict as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from served import Answer, Overhead, asker, calibrate, overhead_of, server

from kvtrove.cli.output import write_json
from kvtrove.names import find_model
from kvtrove.plan.cost import CostModel, FittedCost
from kvtrove.plan.kv import cache_of
from kvtrove.plan.load import Service, Workload, max_rate
from kvtrove.plan.simulate import SimulationSettings, simulate
from kvtrove.plan.simulate.results import SimulationResult
from kvtrove.plan.simulate.settings import REFERENCE_STEP
from kvtrove.plan.source import read_model
from kvtrove.plan.traces import Trace, TraceRequest, read_trace, summarise
from kvtrove.scheduler.scheduler import SchedulerLimits

BLOCK = 32  # tokens
OPENING, ADDED, OUTPUT = (6, 12), (1, 3), (24, 64)  # blocks, blocks and tokens, both ends included
LONGEST = 1024  # tokens of a prompt
SETTLE = 12  # arrivals


def write_trace(path: Path, count: int, seed: int) -> None:
    """`count` requests at one per second on average (Poisson), in sessions of WEKA's format."""
    random, now = Random(seed), 0.0
    sessions: list[dict[str, Any]] = []
    ended: list[int] = []  # by session: the arrival of its last turn, as a number
    for number in range(count):
        now += random.expovariate(1.0)
        settled = [i for i, last in enumerate(ended) if number - last >= SETTLE]
        ready = [i for i in settled if _blocks(sessions[i]) < LONGEST // BLOCK]
        if ready and random.random() < 0.75:
            index = random.choice(ready)
            blocks = min(_blocks(sessions[index]) + random.randint(*ADDED), LONGEST // BLOCK)
            ended[index] = number
        else:
            index, blocks = len(sessions), random.randint(*OPENING)
            sessions.append({"id": f"s{index}", "block_size": BLOCK, "requests": []})
            ended.append(number)
        sizes = {"in": blocks * BLOCK + random.randint(1, BLOCK - 1), "out": random.randint(*OUTPUT)}
        sessions[index]["requests"].append({"t": now, **sizes, "hash_ids": list(range(blocks))})
    path.write_text("".join(json.dumps(session) + "\n" for session in sessions))


def _blocks(session: dict[str, Any]) -> int:
    return len(session["requests"][-1]["hash_ids"])


def token_ids(trace: Trace, index: int, vocab: int) -> list[int]:
    """The prompt of request number `index`: random tokens for every block id, and for what belongs to no block."""
    request, ids = trace.requests[index], []
    for block in request.blocks:
        ids += Random(2 * block).choices(range(vocab), k=trace.block_size)
    tail = request.prompt_tokens - len(ids)
    return ids + Random(2 * index + 1).choices(range(vocab), k=tail) if tail > 0 else ids[: request.prompt_tokens]


@dataclass(frozen=True)
class Setup:
    """Both worlds: a model, a cache of `num_blocks` blocks, `batch` sequences in a step at most, and the trace."""

    model: str
    num_blocks: int
    batch: int
    trace: Trace

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the server."""
        sizes = {"block-size": BLOCK, "num-blocks": self.num_blocks, "max-num-seqs": self.batch}
        return tuple(word for name, value in sizes.items() for word in (f"--{name}", str(value)))

    def prompts(self) -> list[list[int]]:
        vocab = read_model(find_model(self.model)).vocab_size
        return [token_ids(self.trace, i, vocab) for i in range(len(self.trace.requests))]

    def simulate(self, cost: CostModel, speed: float = 1.0) -> SimulationResult:
        model = read_model(find_model(self.model))
        geometry = cache_of(model, model.dtype, BLOCK)
        limits = SchedulerLimits(max_num_seqs=self.batch)
        return simulate(self.trace, SimulationSettings(BLOCK, self.num_blocks, cost, limits, geometry, speed=speed))


def compare_hits(setup: Setup, simulated: SimulationResult, answers: Sequence[Answer]) -> dict[str, Any]:
    """Token hit ratios of both worlds, and which requests found something else than was simulated."""
    cached = [result.cached for result in simulated.requests]
    prompts = sum(request.prompt_tokens for request in setup.trace.requests)
    return {
        "requests": len(answers),
        "prompt_tokens": prompts,
        "kv_tokens": setup.num_blocks * BLOCK,
        "evictions": simulated.evictions,
        "ideal_hit_ratio": simulated.ideal_hit_ratio,
        "simulated_hit_ratio": simulated.token_hit_ratio,
        "measured_hit_ratio": sum(answer.cached for answer in answers) / prompts,
        "different": [i for i, (one, other) in enumerate(zip(cached, answers, strict=True)) if one != other.cached],
    }


def races(requests: Sequence[TraceRequest], first_tokens: Sequence[float], arrivals: Sequence[float]) -> int:
    """Turns that came before the turn before them had its first token."""
    before: dict[str | None, int] = {}
    found = 0
    for index, request in enumerate(requests):
        if request.session in before:
            found += first_tokens[before[request.session]] > arrivals[index]
        before[request.session] = index
    return found


def hits_only(setup: Setup) -> dict[str, Any]:
    """One request after the other in both worlds; what a step costs does not matter."""
    far = [replace(request, arrival=1e6 * i) for i, request in enumerate(setup.trace.requests)]
    simulated = replace(setup, trace=replace(setup.trace, requests=far)).simulate(FittedCost(REFERENCE_STEP))

    async def ask(url: str) -> list[Answer]:
        async with asker(url) as asks:
            wanted = zip(setup.prompts(), setup.trace.requests, strict=True)
            return [await asks.ask(prompt, request.output_tokens) for prompt, request in wanted]

    with server(setup.model, *setup.flags) as url:
        answers = asyncio.run(ask(url))
    return compare_hits(setup, simulated, answers)


def timed(setup: Setup, load: float, folder: Path) -> dict[str, Any]:
    """Calibrate, choose the rate, simulate, replay. The server of the replay is a new one: its cache is empty."""
    fit = calibrate(setup.model, setup.batch, 2 * LONGEST, folder)
    with server(setup.model, *setup.flags) as url:
        vocab = read_model(find_model(setup.model)).vocab_size
        overhead = asyncio.run(_with(url, lambda asks: overhead_of(asks, fit, vocab, setup.batch)))
    cost = FittedCost(overhead.served(fit))
    rate = load * sustained(setup, cost)
    simulated = setup.simulate(cost, rate)
    prompts = setup.prompts()
    wanted = [(r.arrival / rate, p, r.output_tokens) for r, p in zip(setup.trace.requests, prompts, strict=True)]
    with server(setup.model, *setup.flags) as url:
        answers = asyncio.run(_with(url, lambda asks: asks.replay(wanted)))
    return {
        "rate": rate,
        "load": load,
        "fit": vars(fit),
        "overhead": vars(overhead),
        **compare_hits(setup, simulated, answers),
        **compare_times(setup, simulated, answers, overhead),
    }


async def _with(url: str, use: Any) -> Any:
    async with asker(url) as asks:
        return await use(asks)


def sustained(setup: Setup, cost: CostModel) -> float:
    """Requests per second that the planner takes for the most, with the trace's lengths and reuse."""
    facts = summarise(setup.trace)
    workload = Workload(facts.mean_prompt, facts.mean_output, facts.ideal_hit_ratio)
    return max_rate(workload, Service(cost, setup.num_blocks * BLOCK, setup.batch)).rate


def compare_times(
    setup: Setup, simulated: SimulationResult, answers: Sequence[Answer], overhead: Overhead
) -> dict[str, Any]:
    """Medians in seconds. A request's own overhead delays its first token, in reality and so in the prediction."""
    requests, results = setup.trace.requests, simulated.requests
    tpots = ([r.tpot for r in results if r.tpot is not None], [a.tpot for a in answers if a.tpot is not None])
    return {
        "simulated_ttft": median(r.ttft for r in results) + overhead.request,
        "measured_ttft": median(a.ttft for a in answers),
        "simulated_tpot": median(tpots[0]),
        "measured_tpot": median(tpots[1]),
        "races": races(requests, [r.arrival + r.ttft for r in results], [r.arrival for r in results])
        + races(requests, [a.first for a in answers], [a.due for a in answers]),
    }


def table(found: dict[str, Any]) -> str:
    rows = ["| | simulated | measured | measured / simulated |", "|---|---|---|---|"]
    ms = (1e3, "ms")
    pairs = {"hit_ratio": ("token hit ratio", 100, "%"), "ttft": ("TTFT, median", *ms), "tpot": ("TPOT, median", *ms)}
    for name, (label, factor, unit) in pairs.items():
        if f"measured_{name}" in found:
            planned, real = found[f"simulated_{name}"], found[f"measured_{name}"]
            ratio = f"{real / planned:.3f}" if planned else "-"
            rows.append(f"| {label} | {factor * planned:.2f} {unit} | {factor * real:.2f} {unit} | {ratio} |")
    facts = f"{found['requests']} requests, {found['evictions']} evictions, {len(found['different'])} with other hits"
    if "rate" in found:
        facts += f", {found['rate']:.2f} requests/s, {found['races']} races"
    return "\n".join([*rows, facts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint directory, or demo")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step at most")
    parser.add_argument("--load", type=float, default=0.55, help="share of the largest rate that the planner allows")
    parser.add_argument("--kv-tokens", type=int, help="size of the cache; room for the whole trace if left out")
    parser.add_argument("--hits-only", action="store_true", help="one request after the other, and no times")
    parser.add_argument("--trace", type=Path, help="keep the trace in this file")
    parser.add_argument("--json", help="file for all figures; - is standard output, and nothing else is printed there")
    arguments = parser.parse_args()
    if arguments.requests < 2 or arguments.batch < 1 or not 0 < arguments.load < 1:
        parser.error("--requests must be at least 2, --batch at least 1, --load between 0 and 1")
    if arguments.kv_tokens is not None and arguments.kv_tokens < LONGEST + 2 * BLOCK + OUTPUT[1]:
        parser.error(f"--kv-tokens {arguments.kv_tokens} cannot hold the longest request; {2 * LONGEST} works")
    with tempfile.TemporaryDirectory() as name:
        path = arguments.trace or Path(name) / "trace.jsonl"
        write_trace(path, arguments.requests, arguments.seed)
        trace = read_trace(path)
        most = sum(-(-(r.prompt_tokens + r.output_tokens) // BLOCK) for r in trace.requests)
        blocks = most if arguments.kv_tokens is None else arguments.kv_tokens // BLOCK
        setup = Setup(arguments.model, blocks, arguments.batch, trace)
        found = hits_only(setup) if arguments.hits_only else timed(setup, arguments.load, Path(name))
    if arguments.json != "-":
        print(table(found))
    write_json({"benchmark": "simulator_vs_server", "model": arguments.model, **found}, arguments.json)


if __name__ == "__main__":
    main()
