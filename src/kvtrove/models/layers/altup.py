"""Several hidden states a token, of which a layer computes one (AltUp, arXiv 2301.13310): Gemma 3n.

states [n, T, hidden] ── predict ─┬─ the active one ── attention, MLP ── x
                                  └──────────────────────── correct ──── + what x was predicted wrong, by n factors

predict and correct mix the states by factors that a router makes of the active one. LAuReL (arXiv 2411.07501): a
low-rank map of what enters attention stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.models.layers.linear import Product, Weights
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.per_layer import LayerTail
from kvtrove.models.spec import AltUpSpec, ModelSpec

LEAST_POWER = 1e-5
"""Mean square below which a state is not enlarged to the size of the first one."""


@dataclass(frozen=True, eq=False)
class AltUpStates:
    """Makes the states of embeddings, and one hidden state of them in the end: a projection for each but the first."""

    before: Sequence[Product]
    behind: Sequence[Product]

    @classmethod
    def load(cls, weights: Weights, spec: ModelSpec, altup: AltUpSpec) -> AltUpStates:
        def projections(name: str) -> list[Product]:
            shape = (spec.hidden_size, spec.hidden_size)
            return [weights.linear(f"{name}.{i}", shape) for i in range(altup.states - 1)]

        return cls(projections("altup_projections"), projections("altup_unembed_projections"))

    def begin(self, x: Tensor) -> Tensor:
        """[n, T, hidden] of scaled embeddings x [T, hidden]."""
        return torch.stack([x, *(_as_large(project(x), x) for project in self.before)])

    def end(self, states: Tensor) -> Tensor:
        """[T, hidden] of states [n, T, hidden]."""
        first, others = states[0], states[1:]
        projected = [_as_large(project(x), first) for project, x in zip(self.behind, others, strict=True)]
        return torch.stack([first, *projected]).mean(0)


@dataclass(frozen=True, eq=False)
class AltUp:
    """What a layer has beside attention and MLP.

    router, router_norm: of factors. predictions: float32 [n, n, n], corrections: float32 [n, n]: they weigh what the
    router says, for each (of, by) pair of states and each state. scale: of the active state, None without one.
    """

    spec: AltUpSpec
    router: Product
    router_norm: RMSNorm
    router_scale: float
    predictions: Tensor
    corrections: Tensor
    scale: Tensor | None
    low: Product
    high: Product
    low_rank_norm: RMSNorm

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, altup: AltUpSpec) -> AltUp:
        """name: of the layer."""
        hidden, n = spec.hidden_size, altup.states
        predictions = weights.take(f"{name}.altup.prediction_coefs.weight", (n * n, n))
        return cls(
            altup,
            router=weights.router(f"{name}.altup.modality_router", (n, hidden)),
            router_norm=RMSNorm.load(weights.take, f"{name}.altup.router_norm", hidden, spec),
            router_scale=1.0 / hidden,
            predictions=predictions.float().view(n, n, n),
            corrections=weights.take(f"{name}.altup.correction_coefs.weight", (n, n)).float(),
            scale=weights.take(f"{name}.altup.correct_output_scale", (hidden,)) if altup.scaled else None,
            low=weights.linear(f"{name}.laurel.linear_left", (altup.rank, hidden)),
            high=weights.linear(f"{name}.laurel.linear_right", (hidden, altup.rank)),
            low_rank_norm=RMSNorm.load(weights.take, f"{name}.laurel.post_laurel_norm", hidden, spec),
        )

    def predict(self, states: Tensor) -> Tensor:
        """What states [n, T, hidden] will be behind the layer."""
        factors = _weighed(self._routed(states[self.spec.active]), self.predictions)  # [T, of, by]
        predicted = states.float()
        for by, state in enumerate(states):
            predicted = predicted + factors[:, :, by].T[..., None] * state
        return predicted.to(states.dtype)

    def correct(self, predicted: Tensor, x: Tensor, tail: LayerTail, inputs: Tensor) -> Tensor:
        """The states [n, T, hidden], given what the active one has become, x, and the layer's inputs [T, size]."""
        factors = _weighed(self._routed(x), self.corrections) + 1.0  # [T, n]
        states = (factors.T[..., None] * (x - predicted[self.spec.active]) + predicted).to(x.dtype)
        first = states[self.spec.active]
        states[1:] += tail.added(first if self.scale is None else first * self.scale, inputs)
        return states

    def beside(self, x: Tensor) -> Tensor:
        """x + a low-rank map of it, [T, hidden]."""
        return x + self.low_rank_norm(self.high(self.low(x)))

    def _routed(self, x: Tensor) -> Tensor:
        """float32 [T, n]."""
        return torch.tanh(self.router(self.router_norm(x) * self.router_scale).float()).to(x.dtype).float()


def _weighed(routed: Tensor, weights: Tensor) -> Tensor:
    """[T, ...] of routed [T, n] and weights [..., n]: sums of n products whose order no batch changes."""
    return (routed.view(len(routed), *[1] * (weights.dim() - 1), -1) * weights).sum(-1)


def _as_large(x: Tensor, model: Tensor) -> Tensor:
    """x [T, hidden] with the mean square of `model`, token by token."""
    size = model.square().mean(-1, keepdim=True).sqrt()
    return x * size / x.square().mean(-1, keepdim=True).clamp(min=LEAST_POWER).sqrt()
