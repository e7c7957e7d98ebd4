"""RMSNorm (arXiv 1910.07467), rounded where each family rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtrove.kernels import rows
from kvtrove.models.layers.linear import Take
from kvtrove.models.spec import ModelSpec, QKNorm


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """Normalises the last dimension in float32.

    wide: multiplies by the weight in float32 and rounds once (Gemma, Olmo 2); else it rounds, then multiplies.
    """

    weight: Tensor
    eps: float
    wide: bool = False

    @classmethod
    def load(cls, take: Take, name: str, size: int, spec: ModelSpec) -> RMSNorm:
        weight = take(f"{name}.weight", (size,))
        if spec.wide_norms:
            return cls(weight.float() + spec.norm_offset, spec.norm_eps, wide=True)
        return cls(weight, spec.norm_eps)

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


class WithoutHeadNorms:
    """What the decoder asks of every mixer, of those whose heads have neither norms that it applies nor sinks."""

    q_norm: ClassVar[None] = None
    k_norm: ClassVar[None] = None
    v_norm: ClassVar[None] = None
    sinks: ClassVar[None] = None
    qk_norm: ClassVar[QKNorm | None] = None


class TurnsItself(WithoutHeadNorms):
    """Attention that norms and rotates its queries and keys before anybody else sees them."""

    qk_norm: ClassVar[QKNorm | None] = "rotated"


class NoNorm:
    """The place of a norm that a family leaves out: x as it is."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def of_sum(self, x: Tensor, added: Tensor) -> Tensor:
        """x += added, in place; x itself."""
        return x.add_(added)
