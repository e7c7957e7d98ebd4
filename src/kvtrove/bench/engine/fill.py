"""A full cache without computing it: random K/V in the arena, published under the keys of the prompts.

    template blocks | random K/V, encoded as the format does |
         │ copied row by row
    prompt 0        | block | block | block | ...               sealed and findable like any computed prefix
    prompt 1        | block | block | block | ...

Attention takes as long over random keys and values as over real ones.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.kv.rows import Copy
from kvtrove.kv.table import SequenceKV
from kvtrove.scheduler.output import SchedulerOutput

TEMPLATE_BLOCKS = 8
NOTE = "the cache was filled with random keys and values, not computed from the prompts"


@contextmanager
def filled(engine: Engine, prompts: Sequence[array[int]], num_tokens: int) -> Iterator[list[SequenceKV]]:
    """Inside the block the first `num_tokens` tokens of each prompt are cached, in whole blocks.

    Yields the handles that hold them. Requests that are admitted inside find them; afterwards they stay in the cache
    until others need the room.
    The engine must be idle and have TEMPLATE_BLOCKS blocks per group to spare. ConfigError when blocks are short.
    """
    held: list[SequenceKV] = []
    template = engine.kv.open()
    try:
        _allocate(engine, template, TEMPLATE_BLOCKS * engine.kv.block_size)
        rows = template.block_ids()
        _randomise(engine, rows[0].shape[0], template)
        for prompt in prompts:
            held.append(engine.kv.open())
            _fill(engine, held[-1], prompt, num_tokens, template)
        engine.kv.free(template)
        yield held
    finally:
        for kv in (template, *held):
            engine.kv.free(kv)


def _allocate(engine: Engine, kv: SequenceKV, num_tokens: int) -> None:
    if not engine.kv.allocate(kv, num_tokens):
        raise ConfigError(
            f"kv: {engine.kv.num_blocks} blocks are too few to fill the cache with {num_tokens} more tokens; give it "
            "more memory, or lower batch or context"
        )


@torch.inference_mode()
def _randomise(engine: Engine, num_blocks: int, template: SequenceKV) -> None:
    """Encode random keys and values into the template's blocks, layer by layer."""
    size, arena = engine.kv.block_size, engine.runner.arena
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, engine.runner.model.precision.activations)
    for layer in engine.runner.layers:
        if layer.storage != layer.index:
            continue  # it reads what another layer stored
        shapes = ((num_blocks, size, layer.kv_heads, dim) for dim in (layer.k_dim, layer.v_dim))
        k, v = (torch.randn(shape, generator=generator).to(device=arena.device, dtype=dtype) for shape in shapes)
        ids = torch.from_numpy(template.block_ids()[layer.group].astype("int64"))
        layer.format.seal(k, v, layer.view, ids.to(arena.device))
        if layer.format.select:
            layer.format.summarise(layer.view, ids.to(arena.device))


def _fill(engine: Engine, kv: SequenceKV, prompt: array[int], num_tokens: int, template: SequenceKV) -> None:
    """Step by step, like a prompt that is computed: blocks that leave a window are given back on the way."""
    size, sources = engine.kv.block_size, template.block_ids()
    chunk = max(size, engine.scheduler.limits.max_num_batched_tokens // size * size)
    whole = num_tokens // size * size
    for start in range(0, whole, chunk):
        count = min(chunk, whole - start)
        _allocate(engine, kv, count)
        first, last = start // size, (start + count) // size
        copies = [
            Copy(int(sources[group][i % TEMPLATE_BLOCKS]), int(ids[i]))
            for group, ids in enumerate(kv.block_ids())
            for i in range(first, last)
        ]
        engine.runner.execute(SchedulerOutput([], [*engine.kv.take_ops(), *copies]))
        engine.kv.commit(kv, prompt, count)
