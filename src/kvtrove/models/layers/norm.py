"""RMSNorm (arXiv 1910.07467), rounded where each family rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.kernels import rows
from kvtrove.models.layers.linear import Take


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """Normalises the last dimension in float32.

    wide: Gemma multiplies by (1 + weight) in float32 and rounds once; the others round, then multiply.
    """

    weight: Tensor
    eps: float
    wide: bool = False

    @classmethod
    def load(cls, take: Take, name: str, size: int, eps: float, offset: float) -> RMSNorm:
        weight = take(f"{name}.weight", (size,))
        return cls(weight.float() + offset, eps, wide=True) if offset else cls(weight, eps)

    def __call__(self, x: Tensor) -> Tensor:
        if rows.serves(x):
            return rows.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype) if self.wide else self.weight * normed.to(x.dtype)

    def of_sum(self, x: Tensor, added: Tensor) -> Tensor:
        """x += added, in place; the norm of it."""
        if rows.serves(x) and x.is_contiguous() and added.is_contiguous():
            return rows.add_rms_norm(x, added, self.weight, self.eps)
        return self(x.add_(added))
