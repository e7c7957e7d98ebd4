"""Random weights in the place of a checkpoint: a model of any size from its config.json alone, to measure it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtrove.kernels.linear import Groups
from kvtrove.models.precision import Precision
from kvtrove.models.spec import ModelSpec

POOL = (1 << 22) + 1
"""Numbers drawn once and repeated. Odd, so that rows of usual lengths do not fall on the same numbers."""
STRIDE = 1_000_003  # each tensor begins elsewhere in the pool, so that no two layers are alike


class RandomWeights:
    """Answers what a loader asks of a checkpoint. The same seed and order of questions give the same weights.

    Matrices have variance 1 / columns and norms are neutral, so activations keep their size through any number of
    layers. Beside the model this takes one pool of 4 Mi elements.
    """

    def __init__(self, spec: ModelSpec, precision: Precision, device: str, seed: int = 0) -> None:
        self.spec = spec
        self._activations: torch.dtype = getattr(torch, precision.activations)
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(POOL, generator=generator).to(device=device, dtype=getattr(torch, precision.dtype))
        self._at = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The parameter `name` of the decoder in the dtype of activations: a norm, a bias, a router."""
        if "norm" in name or name.endswith(("scale", "scalar")):
            neutral = 1.0 - (self.spec.norm_offset if "norm" in name else 0.0)
            return torch.full(shape, neutral, dtype=self._activations, device=self._pool.device)
        return self.matrix(name, shape).to(self._activations)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The parameter `name` in the dtype of weights."""
        return self._draw(shape, 1 / math.sqrt(shape[-1]))

    def head(self, embedding: Tensor | Groups) -> Tensor | Groups:
        """The output matrix: `embedding` itself when tied."""
        if self.spec.tie_embeddings:
            return embedding
        return self.matrix("lm_head.weight", (self.spec.vocab_size, self.spec.hidden_size))

    def _draw(self, shape: tuple[int, ...], scale: float) -> Tensor:
        drawn = torch.empty(shape, dtype=self._pool.dtype, device=self._pool.device)
        flat, done = drawn.view(-1), 0
        start = self._at % POOL
        self._at += STRIDE
        while done < len(flat):
            part = self._pool[start : start + len(flat) - done]
            torch.mul(part, scale, out=flat[done : done + len(part)])
            done, start = done + len(part), 0
        return drawn
