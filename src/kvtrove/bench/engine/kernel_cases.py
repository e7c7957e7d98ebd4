"""Cases of the kernels that an engine uses, found through its own interfaces: whatever it runs with is measured."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBackend, AttentionBatch
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.bench.engine.fill import filled
from kvtrove.bench.engine.subject import random_prompts
from kvtrove.bench.engine.work import keys_read, kv_bytes_read
from kvtrove.engine import Engine
from kvtrove.models.layers.embedding import Embedding, PackedEmbedding
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.plan.model import PlanModel
from kvtrove.runner.batch import build_batch
from kvtrove.scheduler.output import ScheduledSequence

ROWS = (1, 8, 32, 512)
"""Tokens in a step that linear layers are measured at."""


@dataclass(frozen=True)
class Case:
    """One line of the table. name: without dots. nbytes: that it must read and write. flops: that it must compute."""

    name: str
    nbytes: float
    flops: float
    run: Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """What cases are made for: an idle engine with room for `batch` sequences of `context` tokens and a block more."""

    plan: PlanModel
    engine: Engine
    batch: int
    context: int


Cases = Callable[[Bench], Iterator[Case]]


def copy_rows(bench: Bench) -> Iterator[Case]:
    """Half of the arena's rows over the other half, in random order."""
    arena = bench.engine.runner.arena
    if arena.device != "cpu":
        return
    rows = np.random.default_rng(0).permutation(arena.num_blocks).astype(np.int32)
    half = arena.num_blocks // 2
    pairs = np.ascontiguousarray(np.stack([rows[:half], rows[half : 2 * half]], axis=1))
    nbytes = 2.0 * half * bench.engine.runner.cache.block_bytes
    yield Case(f"copy_rows {half} blocks", nbytes, 0.0, partial(kernels.copy_rows, arena.rows, pairs))


def attention(bench: Bench) -> Iterator[Case]:
    """All layers, over caches of random K/V: one token of each sequence, and a chunk of one sequence's prompt.

    By the engine's backend, and by the reference that every backend is compared with.
    """
    engine, size = bench.engine, bench.engine.kv.block_size
    cached = max(0, bench.context // size - 1) * size
    chunk = max(2, min(512, cached // 2))
    own = engine.runner.backends
    name = "+".join(sorted({backend.name for backend in own}))
    backends = {"reference": (ReferenceBackend(),) * len(own)} | {name: own}
    prompts = random_prompts(engine, bench.batch, cached + 1, Random(0))
    with filled(engine, prompts, cached) as held:
        for kv in held:
            engine.kv.allocate(kv, size)  # the new token has a block of its own: what is sealed never changes
        decode = [
            ScheduledSequence(i, array("i", [0]), cached, kv.block_ids(), seat=kv.seat) for i, kv in enumerate(held)
        ]
        yield from _attention_cases(bench, backends, decode, f"decode {bench.batch}x{cached + 1}")
    prompt_blocks = engine.kv.open()
    engine.kv.allocate(prompt_blocks, chunk)
    prompt = [ScheduledSequence(0, array("i", [0]) * chunk, 0, prompt_blocks.block_ids(), seat=prompt_blocks.seat)]
    yield from _attention_cases(bench, backends, prompt, f"prefill {chunk}")
    engine.kv.free(prompt_blocks)


def _attention_cases(
    bench: Bench, backends: Mapping[str, Sequence[AttentionBackend]], sequences: list[ScheduledSequence], what: str
) -> Iterator[Case]:
    runner, plan = bench.engine.runner, bench.plan
    batch = build_batch(sequences, runner.cache.block_size, runner.arena.device).attention
    # K/V of a sequence are read once for all of its queries.
    nbytes = kv_bytes_read(runner.cache, [s.start + len(s.tokens) - 1 for s in sequences])
    positions = [s.start + i for s in sequences for i in range(len(s.tokens))]
    flops = sum(
        2.0 * plan.num_heads * (layer.k_dim + layer.v_dim) * sum(keys_read(layer.retention, p) for p in positions)
        for layer in runner.layers
    )
    for name, chosen in backends.items():
        yield Case(f"attention {name} {what}", nbytes, flops, _attend(bench.engine, chosen, batch, len(positions)))


def _attend(
    engine: Engine, backends: Sequence[AttentionBackend], batch: AttentionBatch, tokens: int
) -> Callable[[], None]:
    """A call that stores and attends in every layer, as a step does."""
    dtype = getattr(torch, engine.runner.model.precision.activations)
    device = engine.runner.arena.device
    drawn: dict[tuple[int, int], Tensor] = {}

    def random(heads: int, dim: int) -> Tensor:
        shape = (heads, dim)
        if shape not in drawn:
            drawn[shape] = torch.randn(tokens, heads, dim).to(device=device, dtype=dtype)
        return drawn[shape]

    @torch.inference_mode()
    def run() -> None:
        plans = {backend: backend.plan(batch) for backend in dict.fromkeys(backends)}
        for layer, kv, backend in zip(engine.runner.layers, engine.runner.cache.layers, backends, strict=True):
            own = kv.source is None
            k, v = (random(layer.kv_heads, dim) if own else None for dim in (layer.k_dim, layer.v_dim))
            backend.run(random(layer.num_heads, layer.k_dim), k, v, layer, plans[backend])

    return run


def linear(bench: Bench) -> Iterator[Case]:
    """The model's own linear layers: all of one shape after another, so that none is still in a cache."""
    shapes: dict[tuple[int, int], list[Any]] = defaultdict(list)
    dtype = getattr(torch, bench.engine.runner.model.precision.activations)
    for one in _linears(bench.engine.runner.model):
        packed = one.weights if isinstance(one, PackedLinear) else None
        shapes[(packed.outputs, packed.inputs) if packed else tuple(one.weight.shape)].append(one)
    for (out, inner), found in shapes.items():
        weight = found[0].weights if isinstance(found[0], PackedLinear) else found[0].weight
        for rows in ROWS:
            x = torch.randn(rows, inner).to(device=bench.engine.runner.arena.device, dtype=dtype)
            nbytes = len(found) * (weight.nbytes + (inner + out) * rows * x.element_size())
            flops = 2.0 * len(found) * rows * inner * out
            name = f"linear {out}x{inner} {rows} row{'s' if rows > 1 else ''}"
            yield Case(name, nbytes, flops, partial(_multiply, found, x))


def _multiply(layers: list[Any], x: Tensor) -> None:
    for layer in layers:
        layer(x)


def _linears(part: Any) -> Iterator[Any]:
    """Whatever can be called and has a weight of two dimensions, in the model's order."""
    if isinstance(part, Embedding | PackedEmbedding):
        return  # looked up, not multiplied
    if isinstance(part, PackedLinear):
        yield part
    elif isinstance(part, tuple | list):
        for item in part:
            yield from _linears(item)
    elif is_dataclass(part):
        weight = getattr(part, "weight", None)
        if callable(part) and isinstance(weight, Tensor) and weight.ndim == 2:
            yield part
            return
        for field in fields(part):
            yield from _linears(getattr(part, field.name))


KERNELS: Mapping[str, Cases] = {"copy_rows": copy_rows, "attention": attention, "linear": linear}
"""Kind of kernel, as `--only` takes it -> its cases."""
