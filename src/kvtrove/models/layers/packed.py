"""Linear layers that are repacked at load: the package's own kernels, and oneDNN with its own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.kernels.linear import Kind, PackedWeights
from kvtrove.models.layers.linear import Part


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """weights: bf16 or int8; bias: float32 [outputs]. Input and output are float32 or bfloat16, sums are float32."""

    weights: PackedWeights
    bias: Tensor | None = None

    @classmethod
    def pack(cls, parts: Sequence[Part], inputs: int, kind: Kind, isa: str) -> PackedLinear:
        """One product of all parts, each read, packed and let go before the next."""
        weights = PackedWeights(sum(part.outputs for part in parts), inputs, kind, isa)
        first = 0
        for part in parts:
            weights.fill(first, part.weight())
            first += part.outputs
        return cls(weights, joined_bias(parts, torch.float32))

    def __call__(self, x: Tensor) -> Tensor:
        return self.weights.multiply(x, self.bias)


@dataclass(frozen=True, eq=False)
class OneDnnLinear:
    """weight: in a layout that oneDNN chose for this processor. x must have the dtype it was packed from."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def pack(cls, part: Part) -> OneDnnLinear:
        """RuntimeError when oneDNN cannot pack this dtype on this processor."""
        weight = torch.ops.mkldnn._reorder_linear_weight(part.weight().contiguous(), None)
        return cls(weight, joined_bias([part], None))

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def joined_bias(parts: Sequence[Part], dtype: torch.dtype | None) -> Tensor | None:
    """The biases of all parts behind each other; None when no part has one."""
    biases = [part.bias().to(dtype) for part in parts if part.bias]
    return torch.cat(biases).contiguous() if biases else None
