"""Decode attention in GB/s of live K/V, beside a plain read of as many bytes and beside the reference backend.

    python benchmarks/micro/attention.py [--json FILE] [--shapes M1,M3] [--batch 1,8,32] [--context 1024,4096]
                                         [--formats float32,bfloat16,int8] [--isa auto|avx2,avx512,...] [--prefill]
                                         [--no-reference] [--cpu-time]

Every round times one call of each contestant in turn, so that other work on the machine hits them alike; medians over
all rounds are printed. `read` sums as many int64 as the live K/V fill: what memory gives. `share` is a level's GB/s
over that; each level of --isa is a contestant of its own, so that one slower than a lower one shows. Arenas hold
several layers and are visited in turn, so that nothing is read from a cache; blocks lie in random order.
With --prefill: milliseconds for a chunk of 512 new tokens after `context` computed ones.
With --cpu-time, for a machine that others use as well: processor time, of OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import kvtrove  # noqa: F401  before torch, whose idle threads would spin into the time of what comes next

# isort: split

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.cli.output import write_json
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.retention import Full
from kvtrove.kv.spec import KVCacheSpec, LayerKV

SHAPES = {"M1": (14, 2, 64), "M3": (16, 16, 64), "8B": (32, 8, 128)}  # heads, kv_heads, head_dim
BLOCK, PREFILL = 32, 512
COLD = 192 << 20  # bytes of K/V that are visited before any is read again


@dataclass
class Bench:
    """Layers of one cache that hold `batch` sequences of `context` tokens, and the step after these."""

    layers: list[AttentionLayer]
    batch: AttentionBatch
    query: Tensor
    key: Tensor
    live_bytes: int


def make(shape: str, fmt: str, batch: int, context: int, new: int) -> Bench:
    heads, kv_heads, dim = SHAPES[shape]
    kv_format = int8() if fmt == "int8" else dense(fmt)
    per_sequence = -(-(context + new) // BLOCK)
    one = KVCacheSpec((LayerKV(0, kv_heads, dim, dim, kv_format),), BLOCK).block_bytes * batch * per_sequence
    count = max(2, min(24, COLD // one))
    spec = KVCacheSpec(tuple(LayerKV(i, kv_heads, dim, dim, kv_format) for i in range(count)), BLOCK)
    arena = Arena(spec, batch * per_sequence)
    table = torch.randperm(arena.num_blocks).int().view(batch, per_sequence)
    layers = [
        AttentionLayer(i, heads, kv_heads, dim, dim, dim**-0.5, Full(), kv_format, 0, arena.views(i), BLOCK)
        for i in range(count)
    ]
    everything = torch.arange(arena.num_blocks * BLOCK)
    for layer in layers:
        for piece in everything.split(8192):
            k, v = torch.randn(2, len(piece), kv_heads, dim)
            kv_format.encode(k, v, layer.view, piece)
    at = torch.arange(context, context + new)
    slots = (table[:, at // BLOCK].long() * BLOCK + at % BLOCK).flatten()
    step = AttentionBatch([i * new for i in range(batch + 1)], [context] * batch, (GroupTables(slots, table),))
    dtype = torch.bfloat16 if fmt == "bfloat16" else torch.float32
    live = sum(plane.nbytes for plane in layers[0].view.values()) * (context + new) // (per_sequence * BLOCK)
    query, key = torch.randn(batch * new, heads, dim, dtype=dtype), torch.randn(batch * new, kv_heads, dim, dtype=dtype)
    return Bench(layers, step, query, key, live)


def caller(bench: Bench, backend: AttentionBackend) -> Iterator[None]:
    """Each `next` runs one layer of a step, as the runner does."""
    for layer in bench.layers:
        assert not backend.reasons_against(layer, "cpu")
    plan = backend.plan(bench.batch)
    while True:
        for layer in bench.layers:
            backend.run(bench.query, bench.key, bench.key, layer, plan)
            yield


def reader(nbytes: int) -> Iterator[None]:
    memory = torch.ones(max(nbytes, COLD) // 8, dtype=torch.int64)
    size = nbytes // 8
    while True:
        for begin in range(0, len(memory) - size + 1, size):
            memory[begin : begin + size].sum()
            yield


def interleaved(
    contestants: dict[str, Callable[[], None]], seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of one call of each, called in turn until the time is up (at least 5 rounds).

    Each round begins with another one: what a call leaves behind, in caches and in threads that still look for work,
    would else meet the same one every time.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    stop = time.perf_counter() + seconds
    order = list(contestants.items())
    rounds = 0
    while rounds < 5 or time.perf_counter() < stop:
        rounds += 1
        order = order[1:] + order[:1]
        for name, call in order:
            begin = clock()
            call()
            times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(args: argparse.Namespace, shape: str, fmt: str, batch: int, context: int) -> dict[str, object]:
    new = PREFILL if args.prefill else 1
    bench = make(shape, fmt, batch, context, new)
    levels = args.isa.split(",")
    runs: dict[str, Iterator[None]] = {level: caller(bench, CpuBackend(level)) for level in levels}
    if not args.no_reference:
        runs["reference"] = caller(bench, ReferenceBackend())
    if not args.prefill:
        runs["read"] = reader(bench.live_bytes)
    contestants = {name: (lambda run=run: next(run)) for name, run in runs.items()}
    for call in contestants.values():
        call()
    clock = time.process_time if args.cpu_time else time.perf_counter
    took = interleaved(contestants, args.seconds, clock)
    cell: dict[str, object] = {"shape": shape, "format": fmt, "batch": batch, "context": context}
    cell |= {f"{name}_ms": round(seconds * 1e3, 3) for name, seconds in took.items()}
    if not args.prefill:
        cell |= {f"{name}_gb_s": round(bench.live_bytes / seconds / 1e9, 2) for name, seconds in took.items()}
        cell["share"] = {level: round(took["read"] / took[level], 3) for level in levels}
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    parser.add_argument("--shapes", default="M1,M3", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--context", default="1024,4096")
    parser.add_argument("--formats", default="float32,bfloat16,int8")
    parser.add_argument("--isa", default="auto", help="instruction sets to compare, separated by commas")
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell")
    args = parser.parse_args()
    if args.cpu_time and kernels.threads() > 1:
        parser.error("--cpu-time counts the work of one thread; set OMP_NUM_THREADS=1")
    torch.manual_seed(0)
    cells = []
    for shape in args.shapes.split(","):
        for fmt in args.formats.split(","):
            for batch in map(int, args.batch.split(",")):
                for context in map(int, args.context.split(",")):
                    cells.append(measure(args, shape, fmt, batch, context))
                    sys.stderr.write(json.dumps(cells[-1]) + "\n")
    write_json({"benchmark": "attention", "threads": kernels.threads(), "cells": cells}, args.json)


if __name__ == "__main__":
    main()
