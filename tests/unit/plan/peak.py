"""Measures the peak memory of a step: every storage that a torch operation returns, from its birth to its release."""

from __future__ import annotations

import gc
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kv.arena import Arena
from kvtrove.models.cache import cache_spec
from kvtrove.models.decoder import Model
from kvtrove.models.layers.linear import Weights
from kvtrove.models.spec import ModelSpec
from kvtrove.request import SamplingParams
from kvtrove.runner.model_runner import ModelRunner
from kvtrove.scheduler.output import SampleSpec, ScheduledSequence, SchedulerOutput

BLOCK = 32
Shape = Sequence[tuple[int, int]]
"""Per sequence of a step: tokens that are cached, tokens to compute."""


class PeakBytes(TorchDispatchMode):
    """live, peak: bytes of the storages made while the mode is on. What existed before does not count."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in existing}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._count(out)
        return out

    def _count(self, out: Any) -> None:
        if isinstance(out, list | tuple):
            for item in out:
                self._count(item)
        elif isinstance(out, Tensor):
            storage = out.untyped_storage()
            key = storage._cdata
            if key not in self._sizes and key not in self._known:
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def random_runner(spec: ModelSpec, num_blocks: int) -> ModelRunner:
    """A runner of random weights; nothing is read from disk."""
    generator = torch.Generator().manual_seed(0)

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(0.05).to(getattr(torch, spec.dtype))

    def head(embedding: Tensor) -> Tensor:
        return embedding if spec.tie_embeddings else take("", (spec.vocab_size, spec.hidden_size))

    model = Model.load(Weights(take), head, spec, spec.max_position, lambda layers: None)
    cache = cache_spec(spec, spec.dtype, BLOCK)
    return ModelRunner(model, cache, Arena(cache, num_blocks), (ReferenceBackend(),) * spec.num_layers, str)


def measured_peak(spec: ModelSpec, shape: Shape, params: SamplingParams) -> int:
    """Bytes at the highest moment of one step in which every sequence samples."""
    lengths = [-(-(cached + new) // BLOCK) for cached, new in shape]
    starts = np.cumsum([0, *lengths])
    runner = random_runner(spec, int(starts[-1]))
    sequences = []
    for i, (cached, new) in enumerate(shape):
        ids = np.arange(starts[i], starts[i + 1], dtype=np.int32)
        sample = SampleSpec(params, i, (0,), 0, array("i", [1]), array("i"))
        tables = tuple(ids for _ in runner.cache.groups)
        sequences.append(ScheduledSequence(i, array("i", [1] * new), cached, tables, sample))
    existing = [t for t in gc.get_objects() if type(t) is Tensor]
    with PeakBytes(existing) as peak:
        runner.execute(SchedulerOutput(sequences, []))
    return peak.peak
