"""The worst steps that can ever be asked for, run once before the first request: they fit then, or never will.

    step 1   the last chunk of a prompt that fills the longest context; all other sequences start
    step 2   decodes: `LONGEST` of them with the longest context, if the cache holds so many, all others with one token
    step 3   prompts from their beginning, which report log-probabilities
             every sequence of each step ranks the whole vocabulary

Activations of a layer are gone when the next one starts, so one layer of each kind has the peak of all of them. All
block tables name block 0: what is read and computed is as large as with a full cache, and the cache stays untouched.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kvtrove.kernels.linear import PackedWeights
from kvtrove.plan.activations import StepLimits
from kvtrove.plan.process import (
    peak_bytes,
    reset_peak,
    resident_bytes,
    return_freed_memory,
)
from kvtrove.request import MAX_LOGPROBS, SamplingParams
from kvtrove.runner.model_runner import PROMPT_LOGPROB_ROWS, ModelRunner
from kvtrove.scheduler.output import SampleSpec, ScheduledSequence, SchedulerOutput

PAGE = 4096
RANKED = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1)
"""Nothing that a request can ask for takes more memory per row of logits."""

LONGEST = 4
"""Decodes with the longest context. Attention takes them in tiles, so more of them take longer, but not more memory."""

Step = list[tuple[int, int]]
"""Per sequence: tokens that are cached, tokens to compute."""


@dataclass(frozen=True)
class Measured:
    """Bytes. process: interpreter and libraries, once they have worked; 0 on a GPU. activations: peak of a step."""

    process: int
    activations: int


def warm_up(runner: ModelRunner, limits: StepLimits) -> Measured | None:
    """Run the worst steps within `limits` and measure them; None where the system does not tell what is held.

    On a CPU the weights are read in first, so the first request does not wait for a disk either. The C library should
    have been told to return large buffers (`load_runner` does), so that no later step holds more than this one.
    """
    on_host = runner.arena.device == "cpu"
    weights = sum(map(_read_in, _parameters(runner.model))) if on_host else 0
    _run(runner, [(0, 1), (0, 1)])  # libraries allocate their own buffers, and every layer is met
    alone = _one_layer_of_each_kind(runner)
    measure = _measure_host if on_host else _measure_cuda
    measured = measure(alone, list(worst_steps(limits)))
    runner.arena.rows[0].zero_()
    if measured is None:
        return None
    held, activations = measured
    return Measured(max(0, held - weights - runner.cache.block_bytes) if held else 0, activations)


def worst_steps(limits: StepLimits) -> Iterator[Step]:
    """The three steps above, for a cache of `limits.cached` tokens."""
    tokens, sequences, context = limits.tokens, limits.sequences, limits.context
    cached = sequences * context if limits.cached is None else max(context, limits.cached)
    chunk = min(context, max(1, tokens - (sequences - 1)))
    yield [(context - chunk, chunk), *[(0, 1)] * min(sequences - 1, tokens - chunk)]
    decodes = min(sequences, tokens)
    longest = min(LONGEST, decodes, cached // context)
    yield [(context - 1, 1)] * longest + [(0, 1)] * (decodes - longest)
    tokens = min(tokens, cached)
    prompts = [context] * (tokens // context) + [tokens % context] * (tokens % context > 0)
    yield [(0, length) for length in prompts[:sequences]]


def _run(runner: ModelRunner, step: Step) -> None:
    sequences = []
    for index, (cached, new) in enumerate(step):
        table = np.zeros(-(-(cached + new) // runner.cache.block_size), dtype=np.int32)
        sample = SampleSpec(RANKED, index, (0,), 0, array("i", [0]), array("i"))
        tables = tuple(table for _ in runner.cache.groups)
        tokens = array("i", [0] * new)
        reported = tokens[:PROMPT_LOGPROB_ROWS] if cached == 0 and new > 1 else array("i")
        logprobs = MAX_LOGPROBS if reported else None
        work = ScheduledSequence(
            index, tokens, cached, tables, sample, prompt_logprobs=logprobs, prompt_targets=reported
        )
        sequences.append(work)
    runner.execute(SchedulerOutput(sequences))


def _one_layer_of_each_kind(runner: ModelRunner) -> ModelRunner:
    spec = runner.model.spec
    first = {layer: index for index, layer in reversed(list(enumerate(spec.layers)))}
    kept = sorted(first.values())
    alone = copy.copy(runner)
    number = {index: i for i, index in enumerate(kept)}
    served = [(layer, one) for layer, one in zip(runner.layers, runner.backends, strict=True) if layer.index in number]
    alone.layers = tuple(replace(layer, index=number[layer.index]) for layer, _ in served)
    alone.backends = tuple(backend for _, backend in served)
    alone.states = {number[index]: states for index, states in runner.states.items() if index in number}
    alone.model = replace(
        runner.model,
        spec=replace(spec, layers=tuple(spec.layers[index] for index in kept)),
        layers=tuple(runner.model.layers[index] for index in kept),
    )
    alone.fuse()
    return alone


def _measure_host(runner: ModelRunner, steps: list[Step]) -> tuple[int, int] | None:
    """(held before the steps, most on top of it). What the C library keeps of freed buffers counts: it is not free."""
    return_freed_memory()
    before = resident_bytes()
    if before is None or not reset_peak():
        for step in steps:
            _run(runner, step)
        return None
    for step in steps:
        _run(runner, step)
    peak = peak_bytes()
    return_freed_memory()
    return None if peak is None else (before, max(0, peak - before))


def _measure_cuda(runner: ModelRunner, steps: list[Step]) -> tuple[int, int]:
    before = torch.cuda.memory_allocated(runner.arena.device)
    torch.cuda.reset_peak_memory_stats(runner.arena.device)
    for step in steps:
        _run(runner, step)
    return 0, torch.cuda.max_memory_allocated(runner.arena.device) - before


def _parameters(part: object) -> Iterator[Tensor | PackedWeights]:
    """All that holds numbers of a model, which is dataclasses all the way down; tied ones once."""
    return iter({_place(found): found for found in _walk(part)}.values())


def _place(part: Tensor | PackedWeights) -> int:
    if isinstance(part, PackedWeights) or part.is_mkldnn:
        return -id(part)
    return int(part.untyped_storage().data_ptr() + part.storage_offset() * part.element_size())


def _walk(part: object) -> Iterator[Tensor | PackedWeights]:
    if isinstance(part, Tensor | PackedWeights):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _walk(value)
    elif isinstance(part, tuple | list):
        for value in part:
            yield from _walk(value)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _walk(getattr(part, field.name))


def _read_in(tensor: Tensor | PackedWeights) -> int:
    """Touch every page of a parameter; returns its bytes. Packed ones, oneDNN's as well, were written at load."""
    if isinstance(tensor, PackedWeights):
        return tensor.nbytes
    if not tensor.is_mkldnn and tensor.is_contiguous() and tensor.numel():
        tensor.flatten().view(torch.uint8)[::PAGE].amax()
    return tensor.numel() * tensor.element_size()
