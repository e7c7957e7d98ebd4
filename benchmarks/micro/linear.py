"""Linear layers: how near a product of few rows comes to the speed of memory, one of many rows to that of arithmetic.

    python benchmarks/micro/linear.py [--rows 1 8 32 512] [--weights 60] [--threads 2] [--rounds 7] [--json FILE]
    python benchmarks/micro/linear.py --threads 1 --clock cpu          on a machine that is busy with other things

Every implementation multiplies x [rows, 896] with `--weights` different matrices [4864, 896], so that they come from
memory as in a step (4 of them from 128 rows on, where arithmetic decides). Rounds alternate between implementations and
a plain read of as many bytes; the best round of each counts. What this processor lacks is left out.

GB/s: bytes of weights in their stored form per second. read: those of the plain read (a torch sum), in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove import kernels
from kvtrove.kernels.linear import PackedWeights

OUTPUTS, INPUTS = 4864, 896
MANY_ROWS = 128
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
Call = Callable[[Tensor], Tensor]
Implementations = dict[str, tuple[torch.dtype, float, list[Call]]]


def implementations(weights: list[Tensor]) -> Implementations:
    """name -> (dtype of x, bytes per weight, a product per matrix). weights: bf16."""
    wide = [w.float() for w in weights]
    found: Implementations = {
        "torch float32": (torch.float32, 4, [lambda x, w=w: F.linear(x, w) for w in wide]),
        "torch bf16": (torch.bfloat16, 2, [lambda x, w=w: F.linear(x, w) for w in weights]),
        "own bf16": (torch.float32, 2, [packed(w, "bf16").multiply for w in weights]),
        "own int8": (torch.float32, 1, [packed(w, "int8").multiply for w in weights]),
    }
    for name, source in (("onednn float32", wide), ("onednn bf16", weights)):
        try:
            calls = [onednn(w) for w in source]
        except RuntimeError:
            continue
        found[name] = (source[0].dtype, source[0].element_size(), calls)
    return found


def packed(weight: Tensor, kind: str) -> PackedWeights:
    result = PackedWeights(*weight.shape, kind)  # type: ignore[arg-type]
    result.fill(0, weight)
    return result


def onednn(weight: Tensor) -> Call:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")


def measure(rows: int, calls: Implementations, plain: Tensor, rounds: int, clock: Callable[[], float]) -> dict:
    """GB/s and GFLOP/s per implementation, and GB/s of the plain read."""
    best = dict.fromkeys([*calls, "read"], float("inf"))
    count = {name: len(c) if rows < MANY_ROWS else min(4, len(c)) for name, (_, _, c) in calls.items()}
    inputs = {dtype: torch.randn(rows, INPUTS).to(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def seconds(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    for _ in range(rounds):
        best["read"] = min(best["read"], seconds(plain.sum))
        for name, (dtype, _, products) in calls.items():
            x, used = inputs[dtype], products[: count[name]]
            best[name] = min(best[name], seconds(lambda x=x, used=used: [product(x) for product in used]))
    result: dict = {"rows": rows, "read": plain.nbytes / best.pop("read") / 1e9}
    for name, taken in best.items():
        elements = count[name] * OUTPUTS * INPUTS
        result[name] = {"gb_s": elements * calls[name][1] / taken / 1e9, "gflop_s": 2 * rows * elements / taken / 1e9}
    return result


def show(result: dict) -> None:
    print(f"{result['rows']} rows, plain read {result['read']:.1f} GB/s")
    for name, figures in result.items():
        if isinstance(figures, dict):
            share = figures["gb_s"] / result["read"]
            print(f"  {name:15} {figures['gb_s']:6.1f} GB/s {share:6.0%} of read {figures['gflop_s']:7.1f} GFLOP/s")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--weights", type=int, default=60, help="different matrices")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the one thread that computes")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu counts one thread: add --threads 1")
    kernels.set_threads(args.threads)
    weights = [torch.randn(OUTPUTS, INPUTS).bfloat16() for _ in range(args.weights)]
    calls, plain = implementations(weights), torch.randn(args.weights * OUTPUTS * INPUTS // 2)
    results = []
    for rows in args.rows:
        results.append(measure(rows, calls, plain, args.rounds, CLOCKS[args.clock]))
        if args.json != "-":
            show(results[-1])
    text = json.dumps({"benchmark": "linear", "shape": [OUTPUTS, INPUTS], **vars(args), "results": results}, indent=1)
    if args.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(args.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
