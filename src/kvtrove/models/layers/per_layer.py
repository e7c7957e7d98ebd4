"""Per-layer inputs (Gemma 3n and 4): beside its embedding, a token has a small vector for every layer.

token ── table ───────────────┐
embedding ── project ── norm ─ + ── inputs [layers, size]       layer:  x += norm(project(act(gate(x)) * inputs[layer]))

The table is larger than all layers together, but a step reads one row a token: on a CPU it stays in the mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.models.layers.embedding import Embedding
from kvtrove.models.layers.linear import Product, Weights
from kvtrove.models.layers.mlp import ACTIVATIONS
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.spec import Activation, ModelSpec, PerLayerSpec


@dataclass(frozen=True, eq=False)
class PerLayerInputs:
    """table: [vocab_size, layers * size]. embed_scale: representable in the dtype of activations."""

    spec: PerLayerSpec
    table: Embedding
    project: Product
    norm: RMSNorm
    embed_scale: float
    project_scale: float

    @classmethod
    def load(cls, weights: Weights, spec: ModelSpec, given: PerLayerSpec, dtype: torch.dtype) -> PerLayerInputs:
        width = spec.num_layers * given.size
        return cls(
            given,
            Embedding(weights.numbers("embed_tokens_per_layer.weight", (given.vocab_size, width)), dtype),
            weights.linear("per_layer_model_projection", (width, spec.hidden_size)),
            RMSNorm.load(weights.take, "per_layer_projection_norm", given.size, spec),
            embed_scale=float(torch.tensor(given.size**0.5, dtype=dtype)),
            project_scale=spec.hidden_size**-0.5,
        )

    def __call__(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        """[T, layers, size] of tokens int64 [T] and their scaled embeddings [T, hidden_size]."""
        known = torch.where(tokens < self.spec.vocab_size, tokens, 0)
        looked_up = (self.table(known) * self.embed_scale).unflatten(-1, (-1, self.spec.size))
        projected = (self.project(embedded) * self.project_scale).unflatten(-1, (-1, self.spec.size))
        return (self.norm(projected) + looked_up) * 2.0**-0.5


@dataclass(frozen=True, eq=False)
class LayerTail:
    """What a layer does behind its MLP. scalar: multiplies all that leaves the layer."""

    gate: Product | None
    project: Product | None
    norm: RMSNorm | None
    activation: Activation
    scalar: float

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec) -> LayerTail | None:
        """None where nothing is done."""
        if not (spec.per_layer or spec.layer_scalars):
            return None
        scalar = float(weights.take(f"{name}.layer_scalar", (1,))) if spec.layer_scalars else 1.0
        if spec.per_layer is None:
            return cls(None, None, None, spec.activation, scalar)
        hidden, size = spec.hidden_size, spec.per_layer.size
        return cls(
            weights.linear(f"{name}.per_layer_input_gate", (size, hidden)),
            weights.linear(f"{name}.per_layer_projection", (hidden, size)),
            RMSNorm.load(weights.take, f"{name}.post_per_layer_input_norm", hidden, spec),
            spec.activation,
            scalar,
        )

    def __call__(self, x: Tensor, added: Tensor, inputs: Tensor | None) -> Tensor:
        """x + added and what follows from the layer's inputs [T, size], in place of x [T, hidden_size]."""
        x.add_(added)
        if self.gate is not None and inputs is not None:
            x.add_(self.added(x, inputs))
        return x if self.scalar == 1.0 else x.mul_(self.scalar)

    def added(self, x: Tensor, inputs: Tensor) -> Tensor:
        """What the layer's inputs [T, size] make of x [T, hidden_size]."""
        assert self.gate is not None
        assert self.project is not None
        assert self.norm is not None
        return self.norm(self.project(ACTIVATIONS[self.activation](self.gate(x)) * inputs))
