"""Decode steps with several caches, in turn in one process: milliseconds, and the ratio to the first.

    KVTROVE_ISA=avx512 python benchmarks/macro/cache_formats.py config.json [--batch 8] [--context 4096]
                                                    [--cache bf16 int8 ...] [--weights int8] [--apart] [--json FILE]

One engine for each recipe, with the same random weights; every round takes a step of each, so that what else the
machine does meets all of them. The medians are compared. --apart: one engine after the other, where memory does not
hold all of them. Processor time leaves out what other processes took; with one thread (OMP_NUM_THREADS=1) it is what a
step takes on a machine of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median

from kvtrove import kernels
from kvtrove.bench.engine.fill import filled
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.config import Environment
from kvtrove.engine import Engine

RECIPES = ("bf16", "int8", "k=int8+v=int4r", "int4r")


def decoding(args: argparse.Namespace, recipe: str) -> Engine:
    """An engine whose sequences of about `context` tokens have drawn their first one."""
    subject = Subject(random_weights=args.config, cache=recipe, weights=args.weights)
    cached = args.context // subject.block_size * subject.block_size
    engine = subject.start(args.batch, cached + args.rounds + 2, args.context)
    prompts = random_prompts(engine, args.batch, cached + 1, Random(0))
    with filled(engine, prompts, cached):
        for number, prompt in enumerate(prompts):
            engine.add(str(number), prompt, greedy(args.rounds + 1))
        engine.step()
    return engine


def steps(engines: dict[str, Engine], rounds: int) -> Iterator[tuple[str, float, float]]:
    """Recipe, seconds and processor seconds of each step."""
    for _ in range(rounds):
        for recipe, engine in engines.items():
            start, busy = time.perf_counter(), time.process_time()
            outputs = engine.step()
            reasons = {output.outputs[0].finish_reason for output in outputs} - {None, "length"}
            if reasons or not outputs:
                raise SystemExit(f"{recipe}: a step failed ({', '.join(map(str, reasons)) or 'no output'})")
            yield recipe, time.perf_counter() - start, time.process_time() - busy


def summary(recipe: str, taken: list[float], worked: list[float], first: float) -> str:
    """One line in milliseconds. first: the median of the recipe that others are compared with."""
    times = [1e3 * seconds for seconds in (median(taken), min(taken), median(worked), min(worked))]
    middle, least, busy, least_busy = times
    return (
        f"{recipe:16} {middle:8.1f} ms {middle / first / 1e3:5.2f}  least {least:8.1f}  "
        f"processor {busy:8.1f}  least {least_busy:8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.json of a model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--cache", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    taken: dict[str, list[float]] = {recipe: [] for recipe in args.cache}
    worked: dict[str, list[float]] = {recipe: [] for recipe in args.cache}
    isa = kernels.isa(Environment.read().isa)
    print(f"{isa}, {kernels.threads()} threads, {args.batch} x {args.context}, weights {args.weights}", flush=True)
    for together in ([recipe] for recipe in args.cache) if args.apart else [args.cache]:
        for recipe, seconds, busy in steps({recipe: decoding(args, recipe) for recipe in together}, args.rounds):
            taken[recipe].append(seconds)
            worked[recipe].append(busy)
        for recipe in together:
            print(summary(recipe, taken[recipe], worked[recipe], median(taken[args.cache[0]])), flush=True)
    if args.json:
        shape = {"isa": isa, "threads": kernels.threads(), "batch": args.batch, "context": args.context}
        report = shape | {"weights": args.weights, "config": args.config, "seconds": taken, "processor_seconds": worked}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
