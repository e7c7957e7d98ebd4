"""The adapters of a runner, and the model that computes steps in which some sequence has one.

Steps without adapters take the model itself, whose layers are joined into few calls; the bits of their rows are the
same in both.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from pathlib import Path

import torch

from kvtrove.attention.backend import AttentionBackend, AttentionLayer
from kvtrove.models.decoder import Model
from kvtrove.models.layers.adapted import Selection
from kvtrove.models.lora import Adapter, load_adapter, with_adapters
from kvtrove.models.products import Products
from kvtrove.runner.fused import FusedLayers
from kvtrove.scheduler.output import ScheduledSequence

log = logging.getLogger(__name__)


class Adapters:
    """loaded: by digest, so that one may take the name of another whose requests still run."""

    def __init__(self, model: Model, layers: Sequence[AttentionLayer], backends: Sequence[AttentionBackend]) -> None:
        self.loaded: dict[bytes, Adapter] = {}
        self._base, self._layers, self._backends = model, layers, backends
        self._selection = Selection()
        self._built: tuple[Model, FusedLayers] | None = None

    def load(self, path: Path, products: Products) -> bytes:
        """The digest of the adapter in this folder. ModelError when it cannot be served."""
        adapter = load_adapter(path, self._base.spec, products)
        self.loaded[adapter.digest], self._built = adapter, None
        log.info("adapter %s: rank %d, %d modules", path, adapter.rank, len(adapter.modules))
        return adapter.digest

    def keep(self, digests: Container[bytes]) -> None:
        """Let go of all others."""
        if unused := [digest for digest in self.loaded if digest not in digests]:
            for digest in unused:
                del self.loaded[digest]
            self._built = None

    def model_for(self, sequences: Sequence[ScheduledSequence]) -> tuple[Model, FusedLayers] | None:
        """What computes a step of these sequences, in their order; None where none of them has an adapter."""
        if not any(s.adapter for s in sequences):
            return None
        rows: dict[bytes, list[int]] = {}
        start = 0
        for s in sequences:
            if s.adapter:
                rows.setdefault(s.adapter, []).extend(range(start, start + len(s.tokens)))
            start += len(s.tokens)
        device = self._base.norm.weight.device
        self._selection.rows = {digest: torch.tensor(listed, device=device) for digest, listed in rows.items()}
        if self._built is None:
            model = with_adapters(self._base, list(self.loaded.values()), self._selection)
            self._built = model, FusedLayers(model, self._layers, self._backends)
        return self._built
