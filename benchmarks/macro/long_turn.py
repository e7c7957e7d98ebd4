"""A whole turn over a long document: seconds until the first token of its answer, milliseconds of each that follows.

    python benchmarks/macro/long_turn.py config.json [--context 100000] [--answer 100] [--cache bf16 quest=1024 ...]
                                         [--json FILE]

One engine after the other, with the same random weights and the same random document, nothing of it cached. Processor
time leaves out what other programs took. `by_quarter` are the seconds that each quarter of the document took: attention
of a dense cache makes the last one the longest.
"""

from __future__ import annotations

import argparse
import json
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median

from kvtrove import kernels
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.config import Environment

RECIPES = ("bf16", "int8", "quest=1024", "snapkv=0.2")


@dataclass(frozen=True)
class Turn:
    """Seconds by the clock and of processor time. token_*: the median of the answer's tokens behind the first."""

    cache: str
    first_token: float
    first_token_processor: float
    by_quarter: list[float]
    token: float
    token_processor: float
    turn: float
    turn_processor: float
    blocks: int


def measure(config: str, cache: str, context: int, answer: int) -> Turn:
    engine = Subject(random_weights=config, cache=cache).start(1, context + answer, context)
    [document] = random_prompts(engine, 1, context, Random(0))
    clocks, computed, blocks = [(time.perf_counter(), time.process_time())], [0], 0
    engine.add("turn", document, greedy(answer))
    while engine.has_unfinished_requests():
        engine.step()
        assert engine.last_step is not None
        computed.append(computed[-1] + sum(len(sequence.tokens) for sequence in engine.last_step.sequences))
        clocks.append((time.perf_counter(), time.process_time()))
        blocks = engine.kv.stats().used or blocks
    if computed[-1] != context + answer - 1:
        raise SystemExit(f"{cache}: {computed[-1]} tokens were computed, not {context + answer - 1}")
    parts = [bisect_left(computed, context * quarter // 4) for quarter in range(5)]
    begun, first, last = clocks[0], clocks[parts[-1]], clocks[-1]
    each = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(clocks[parts[-1] :])]
    wall, busy = (median(one[i] for one in each) for i in range(2))
    return Turn(
        cache,
        *(first[i] - begun[i] for i in range(2)),
        [round(clocks[b][0] - clocks[a][0], 1) for a, b in pairwise(parts)],
        wall,
        busy,
        *(last[i] - begun[i] for i in range(2)),
        blocks,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.json of a model")
    parser.add_argument("--context", type=int, default=100_000)
    parser.add_argument("--answer", type=int, default=100)
    parser.add_argument("--cache", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    isa, threads = kernels.isa(Environment.read().isa), kernels.threads()
    print(f"{isa}, {threads} threads, {args.context} + {args.answer} tokens", flush=True)
    turns = []
    for cache in args.cache:
        turn = measure(args.config, cache, args.context, args.answer)
        turns.append(asdict(turn))
        print(
            f"{cache:14} first token {turn.first_token:7.1f} s (processor {turn.first_token_processor:7.1f}), "
            f"then {1e3 * turn.token:6.1f} ms ({1e3 * turn.token_processor:6.1f}), turn {turn.turn:7.1f} s, "
            f"{turn.blocks} blocks",
            flush=True,
        )
        if args.json:
            settings = {"isa": isa, "threads": threads, "context": args.context, "answer": args.answer}
            args.json.write_text(json.dumps(settings | {"config": args.config, "turns": turns}, indent=1) + "\n")


if __name__ == "__main__":
    main()
