"""Muon: momentum whose matrices are made orthogonal before the step (Keller Jordan, 2024; arXiv 2502.16982)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For the matrices inside a model; embeddings, norms and vectors belong to AdamW.

    Matrices of one shape are made orthogonal together. Updates have a root mean square of 0.2 x lr, as those of AdamW
    have about, so that one learning rate serves both.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                updates = orthogonal(torch.stack([self._momentum(weight, group["momentum"]) for weight in weights]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-0.2 * group["lr"] * max(shape) ** 0.5)

    def _momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov momentum."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return torch.lerp(weight.grad, state["momentum"], momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns]: each with its singular values moved near 1, by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
