"""Cost of a step around the model: schedule() + update() while every request decodes.

    python benchmarks/micro/scheduler_step.py [--json FILE] [--steps 200]

Prints milliseconds per step (median) for 1, 64, 256 and 1024 running requests and pools of 10^4, 10^5 and 10^6 blocks.
The model is replaced by a table that answers one token per sequence. Flat in pool size is the claim; the budget is 1 ms
at 256 requests.
"""

from __future__ import annotations

import argparse
import statistics
import time
from array import array

from kvtrove.cli.output import write_json
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.request import RequestMetrics, SamplingParams
from kvtrove.scheduler.output import ModelOutput, SampledToken, SchedulerOutput, SequenceResult
from kvtrove.scheduler.scheduler import Scheduler, SchedulerLimits
from kvtrove.scheduler.sequence import Request

PROMPT, BLOCK = 64, 32
TOKEN = [SampledToken(1, -1.0)]


def scheduler_with(requests: int, num_blocks: int, steps: int) -> Scheduler:
    kv = KVCacheManager(KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO),), BLOCK), num_blocks)
    scheduler = Scheduler(kv, SchedulerLimits(requests, max(2048, requests * PROMPT), requests))
    params = SamplingParams(max_tokens=steps + 10)
    for i in range(requests):
        prompt = array("i", range(i, i + PROMPT))
        scheduler.add(
            Request(f"r{i}", i, prompt, params, 0, b"", PROMPT + steps + 10, frozenset(), RequestMetrics(0.0))
        )
    return scheduler


def answer(step: SchedulerOutput) -> ModelOutput:
    return ModelOutput({s.seq_id: SequenceResult(TOKEN) for s in step.sequences if s.sample is not None})


def measure(requests: int, num_blocks: int, steps: int) -> float:
    """Median milliseconds of schedule() + update() per step, all requests decoding."""
    scheduler = scheduler_with(requests, num_blocks, steps)
    while scheduler.waiting:
        step = scheduler.schedule()
        scheduler.update(step, answer(step))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step = scheduler.schedule()
        middle = time.perf_counter()
        output = answer(step)
        resumed = time.perf_counter()
        scheduler.update(step, output)
        times.append(time.perf_counter() - resumed + middle - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    rows = [
        {
            "requests": requests,
            "num_blocks": num_blocks,
            "ms_per_step": round(measure(requests, num_blocks, args.steps), 4),
        }
        for requests in (1, 64, 256, 1024)
        for num_blocks in (10**4, 10**5, 10**6)
    ]
    write_json({"benchmark": "scheduler_step", "steps": args.steps, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
