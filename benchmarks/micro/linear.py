"""Linear layers: how near a product of few rows comes to the speed of memory, one of many rows to the peak.

    python benchmarks/micro/linear.py [--rows 1 2 4 8 16 32 64 512] [--shapes 4864x896 896x4864 ...] [--levels amx avx2]
                                      [--kinds bf16 int8 int4] [--rounds 7] [--threads 2] [--json FILE]

Every level multiplies x [rows, inputs] (bf16) with as many different matrices as take `--megabytes`, so that they come
from memory as in a step. Rounds alternate between levels, a plain read from huge pages, and the peak of each level's
instructions; medians count. `--peers` adds torch's and oneDNN's bf16 products, whose peak is that of the highest level.

GB/s: bytes of weights in their stored form per second, and their share of the plain read. TFLOP/s, and their share of
the peak. `best_of_peak`: the best round by the best peak, where a neighbour on the same core slows others down.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable
from statistics import median
from typing import get_args

import kvtrove  # noqa: F401  before torch, whose idle threads would spin into the time of what comes next

# isort: split

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove import kernels
from kvtrove.cli.output import write_json
from kvtrove.kernels.linear import Kind, PackedWeights

LEVELS = ("avx2", "avx512", "amx")
SHAPES = ("4864x896", "896x4864", "1152x896", "9728x896", "1024x1024", "32000x896")
PEAK_ROUNDS = 20_000
READ_BYTES = 256 << 20
Call = Callable[[Tensor], Tensor]


def own(weight: Tensor, kind: Kind, level: str, count: int) -> list[Call]:
    products: list[Call] = []
    for _ in range(count):
        packed = PackedWeights(*weight.shape, kind, level)
        packed.fill(0, weight)
        products.append(packed.multiply)
    return products


def peers(weight: Tensor, count: int) -> dict[str, list[Call]]:
    """torch's product, and oneDNN's in its own layout where it serves this processor."""
    copies = [weight.clone() for _ in range(count)]
    found: dict[str, list[Call]] = {"torch": [lambda x, w=w: F.linear(x, w) for w in copies]}
    try:
        reordered = [torch.ops.mkldnn._reorder_linear_weight(w, None) for w in copies]
    except RuntimeError:
        return found
    found["onednn"] = [lambda x, w=w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for w in reordered]
    return found


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def one_by_one(products: list[Call], x: Tensor) -> None:
    """Each y is given back before the next one is made: fresh pages take as long to clear as tiles to multiply."""
    for product in products:
        product(x)


def measure(shape: tuple[int, int], kind: Kind, args: argparse.Namespace, plain: Tensor) -> list[dict]:
    """A result for each number of rows."""
    outputs, inputs = shape
    weight = torch.randn(outputs, inputs).bfloat16()
    nbytes = PackedWeights(outputs, inputs, kind, "portable").nbytes
    count = max(2, args.megabytes * 2**20 // nbytes)
    calls = {level: own(weight, kind, level, count) for level in args.levels}
    if args.peers and kind == "bf16":
        calls |= peers(weight, count)
    results = []
    for rows in args.rows:
        x = torch.randn(rows, inputs).bfloat16()
        took: dict[str, list[float]] = {name: [] for name in calls}
        read: list[float] = []
        peak: dict[str, list[float]] = {level: [] for level in args.levels}
        for _ in range(args.rounds):
            read.append(READ_BYTES / seconds(plain.view(torch.float64).sum))
            for level in args.levels:
                start = time.perf_counter()
                peak[level].append(kernels.run_at_peak(level, PEAK_ROUNDS) / (time.perf_counter() - start))
            for name, products in calls.items():
                took[name].append(seconds(lambda x=x, all=products: one_by_one(all, x)) / count)
        result: dict = {"shape": list(shape), "kind": kind, "rows": rows, "read_gb_s": median(read) / 1e9, "runs": {}}
        for name, times in took.items():
            speed, flops = nbytes / median(times), 2 * rows * outputs * inputs / median(times)
            rounds = peak.get(name, [max(levels) for levels in zip(*peak.values(), strict=True)])
            result["runs"][name] = {
                "us": median(times) * 1e6,
                "gb_s": speed / 1e9,
                "of_read": speed / median(read),
                "tflop_s": flops / 1e12,
                "of_peak": flops / median(rounds),
                "best_of_peak": flops * median(times) / min(times) / max(rounds),
            }
        results.append(result)
    return results


def show(result: dict) -> None:
    outputs, inputs = result["shape"]
    head = f"{outputs}x{inputs} {result['kind']} {result['rows']:4} rows, read {result['read_gb_s']:5.1f} GB/s"
    for name, run in result["runs"].items():
        print(
            f"{head}  {name:7} {run['us']:9.1f} us {run['gb_s']:6.1f} GB/s {run['of_read']:5.0%}"
            f"  {run['tflop_s']:6.3f} TFLOP/s {run['of_peak']:5.0%}, at best {run['best_of_peak']:5.0%}"
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    levels = LEVELS[: LEVELS.index(kernels.isa()) + 1] if kernels.isa() in LEVELS else ("portable",)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 512])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="OUTPUTSxINPUTS")
    parser.add_argument("--kinds", nargs="+", choices=get_args(Kind), default=["bf16", "int8", "int4"])
    parser.add_argument("--levels", nargs="+", default=list(levels))
    parser.add_argument("--megabytes", type=int, default=200, help="of different matrices")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="torch's and oneDNN's products as well")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    kernels.set_threads(args.threads)
    memory = mmap.mmap(-1, READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    plain = torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    results = []
    for shape in args.shapes:
        outputs, inputs = (int(size) for size in shape.split("x"))
        for kind in args.kinds:
            for result in measure((outputs, inputs), kind, args, plain):
                results.append(result)
                if args.json != "-":
                    show(result)
    write_json({"benchmark": "linear", **vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
