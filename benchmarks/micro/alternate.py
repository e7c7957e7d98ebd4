"""Do matrix products and attention share one pool of threads? Their time in turn, beside the sum of both alone.

    python benchmarks/micro/alternate.py [--json FILE] [--shape M1] [--batch 8] [--context 1024] [--format bfloat16]
                                         [--seconds 10]

A model alternates between the two all the time. Two pools would keep each other's threads spinning: the calls in turn
would then take longer than the same calls apart. Every round times some calls of the product alone, of attention alone,
and of both in turn; `ratio` is the time in turn over the sum of the two, medians over all rounds, and should be 1.
For the product of torch, and for the package's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import kvtrove  # noqa: F401  before torch, whose idle threads would spin into the time of what comes next

# isort: split

import torch
from attention import SHAPES, caller, interleaved, make
from torch.nn import functional as F

from kvtrove import kernels
from kvtrove.attention.cpu import CpuBackend
from kvtrove.cli.output import write_json
from kvtrove.kernels.linear import PackedWeights

OUTPUTS, INPUTS = 4864, 896
COPIES = 24
"""Of the weights, visited in turn: they come from memory as in a model."""
CALLS = 12
"""Of each kind in a round."""


def products(rows: int) -> dict[str, Iterator[None]]:
    """Each `next` is one product of x [rows, INPUTS]."""

    def of_torch() -> Iterator[None]:
        x = torch.randn(rows, INPUTS)
        for weight in cycle(torch.randn(COPIES, OUTPUTS, INPUTS)):
            F.linear(x, weight)
            yield

    def own() -> Iterator[None]:
        x = torch.randn(rows, INPUTS)
        packed = [PackedWeights(OUTPUTS, INPUTS) for _ in range(COPIES)]
        for weights in packed:
            weights.fill(0, torch.randn(OUTPUTS, INPUTS))
        for weights in cycle(packed):
            weights.multiply(x)
            yield

    return {"torch": of_torch(), "own": own()}


def repeat(*calls: Iterator[None]) -> Callable[[], None]:
    """CALLS of each, in turn."""

    def run() -> None:
        for _ in range(CALLS):
            for call in calls:
                next(call)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", default="M1", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--format", default="bfloat16", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each product")
    args = parser.parse_args()
    bench = make(args.shape, args.format, args.batch, args.context, 1)
    attention = caller(bench, CpuBackend())
    results = []
    for name, product in products(args.batch).items():
        runs = {"product": repeat(product), "attention": repeat(attention), "in_turn": repeat(product, attention)}
        seconds = interleaved(runs, args.seconds, time.perf_counter)
        ms = {f"{part}_ms": 1e3 * value / CALLS for part, value in seconds.items()}
        ratio = seconds["in_turn"] / (seconds["product"] + seconds["attention"])
        results.append({"product": name, "threads": kernels.threads(), **ms, "ratio": ratio})
        parts = " + ".join(f"{part} {ms[f'{part}_ms']:.2f} ms" for part in ("product", "attention"))
        print(f"{name:>6}: {parts}, in turn {ms['in_turn_ms']:.2f} ms: ratio {ratio:.3f}", file=sys.stderr)
    if args.json:
        write_json({"cases": results}, str(args.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
