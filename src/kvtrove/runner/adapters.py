"""The adapters of a runner, and the model that computes steps in which some sequence has one.

Steps without adapters take the model itself, whose layers are joined into few calls; the bits of their rows are the
same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtrove.attention.backend import AttentionBackend, AttentionLayer
from kvtrove.models.decoder import Model
from kvtrove.models.layers.adapted import Selection
from kvtrove.models.lora import Adapter, with_adapters
from kvtrove.runner.fused import FusedLayers
from kvtrove.scheduler.output import ScheduledSequence


class Adapters:
    """loaded: by name."""

    def __init__(self, model: Model, layers: Sequence[AttentionLayer], backends: Sequence[AttentionBackend]) -> None:
        self.loaded: dict[str, Adapter] = {}
        self._base, self._layers, self._backends = model, layers, backends
        self._selection = Selection()
        self._built: tuple[Model, FusedLayers] | None = None

    def add(self, adapter: Adapter) -> None:
        """Have it, in place of another one of that name."""
        self.loaded[adapter.name] = adapter
        self._built = None

    def remove(self, name: str) -> None:
        del self.loaded[name]
        self._built = None

    def model_for(self, sequences: Sequence[ScheduledSequence]) -> tuple[Model, FusedLayers] | None:
        """What computes a step of these sequences, in their order; None where none of them has an adapter."""
        if not any(s.adapter for s in sequences):
            return None
        rows: dict[str, list[int]] = {}
        start = 0
        for s in sequences:
            if s.adapter:
                rows.setdefault(s.adapter, []).extend(range(start, start + len(s.tokens)))
            start += len(s.tokens)
        device = self._base.norm.weight.device
        self._selection.rows = {name: torch.tensor(listed, device=device) for name, listed in rows.items()}
        if self._built is None:
            model = with_adapters(self._base, list(self.loaded.values()), self._selection)
            self._built = model, FusedLayers(model, self._layers, self._backends)
        return self._built
