"""Decode steps with several formats of the cache, in turn in one process: milliseconds, and the ratio to bf16.

    KVTROVE_ISA=avx512 python benchmarks/macro/cache_formats.py config.json [--batch 8] [--context 4096]
                                                                            [--cache bf16 int8 ...]

One engine for each recipe, with the same random weights; every round takes a step of each, so that what else the
machine does meets all of them. The medians are compared.
"""

from __future__ import annotations

import argparse
import time
from random import Random
from statistics import median

from kvtrove import kernels
from kvtrove.bench.engine.fill import filled
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.config import Environment
from kvtrove.engine import Engine

RECIPES = ("bf16", "int8", "k=int8+v=int4r", "int4r")


def decoding(config: str, recipe: str, batch: int, context: int, steps: int) -> Engine:
    """An engine whose `batch` sequences of about `context` tokens have drawn their first one."""
    subject = Subject(random_weights=config, cache=recipe)
    cached = context // subject.block_size * subject.block_size
    engine = subject.start(batch, cached + steps + 2, context)
    prompts = random_prompts(engine, batch, cached + 1, Random(0))
    with filled(engine, prompts, cached):
        for number, prompt in enumerate(prompts):
            engine.add(str(number), prompt, greedy(steps + 1))
        engine.step()
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.json of a model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--cache", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    engines = {recipe: decoding(args.config, recipe, args.batch, args.context, args.rounds) for recipe in args.cache}
    taken: dict[str, list[float]] = {recipe: [] for recipe in engines}
    for _ in range(args.rounds):
        for recipe, engine in engines.items():
            start = time.perf_counter()
            engine.step()
            taken[recipe].append(time.perf_counter() - start)
    first = median(taken[args.cache[0]])
    print(f"{kernels.isa(Environment.read().isa)}, {args.batch} x {args.context}")
    for recipe, seconds in taken.items():
        middle, least = median(seconds) * 1e3, min(seconds) * 1e3
        print(f"{recipe:16} {middle:8.1f} ms {middle / first / 1e3:5.2f}  least {least:8.1f}")


if __name__ == "__main__":
    main()
