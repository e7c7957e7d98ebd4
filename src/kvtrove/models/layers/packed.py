"""Linear layers that are repacked at load: the package's own kernels, and oneDNN with its own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind, PackedWeights
from kvtrove.models.layers.linear import Part


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """bias: float32 [outputs]. Input and output are float32 or bfloat16, sums are float32."""

    weights: PackedWeights
    bias: Tensor | None = None

    @classmethod
    def pack(cls, parts: Sequence[Part], inputs: int, kind: Kind, isa: str) -> PackedLinear:
        """One product of all parts, each read, packed and let go before the next.

        A part that is in 4 bits already (`Groups`) is kept as it is; the kind must be one that holds it.
        """
        weights = PackedWeights(sum(part.outputs for part in parts), inputs, kind, isa)
        first = 0
        for part in parts:
            fill(weights, first, part.weight())
            first += part.outputs
        return cls(weights, joined_bias(parts, torch.float32))

    def __call__(self, x: Tensor) -> Tensor:
        return self.weights.multiply(x, self.bias)


@dataclass(frozen=True, eq=False)
class PackedHeads:
    """A matrix [outputs, inputs] for every head, in bf16; a row of x gives the same bits in every batch."""

    weights: PackedWeights
    heads: int
    outputs: int

    @classmethod
    def pack(cls, matrices: Tensor, isa: str) -> PackedHeads:
        """matrices: [heads, outputs, inputs]."""
        heads, outputs, inputs = matrices.shape
        width = PackedWeights(1, 1, "bf16", isa).packed.width
        padded = -(-outputs // width) * width
        weights = PackedWeights(heads * padded, inputs, "bf16", isa)
        for head, matrix in enumerate(matrices):
            weights.fill(head * padded, matrix)
        return cls(weights, heads, outputs)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, heads, inputs] -> [T, heads, outputs]."""
        return self.weights.multiply_heads(x.transpose(0, 1), self.heads, self.outputs).transpose(0, 1)


def fill(weights: PackedWeights, first_output: int, source: Tensor | Groups) -> None:
    """Overwrites outputs from `first_output` on with numbers, or with 4-bit weights as they are."""
    if isinstance(source, Groups):
        weights.fill_groups(first_output, source)
    else:
        weights.fill(first_output, source)


def pack_int4(q: Tensor, scale: Tensor, minimum: Tensor, bias: Tensor | None = None, isa: str = "auto") -> PackedLinear:
    """A product of weights that are in 4 bits already, scale * q + minimum, which are kept as they are.

    q: uint8 [outputs, inputs], 0..15. scale, minimum: floats [outputs, ceil(inputs / 32)], of 32 inputs each; float16
    where that holds all of them exactly (Q4_0, Q4_1), else float32 (Q4_K). bias: float32 [outputs].
    """
    groups = Groups(q, scale, minimum)
    weights = PackedWeights(q.shape[0], q.shape[1], groups.kind, isa)
    weights.fill_groups(0, groups)
    return PackedLinear(weights, bias)


@dataclass(frozen=True, eq=False)
class OneDnnLinear:
    """weight: in a layout that oneDNN chose for this processor. x must have the dtype it was packed from."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def pack(cls, part: Part) -> OneDnnLinear:
        """RuntimeError when oneDNN cannot pack this dtype on this processor."""
        weight = torch.ops.mkldnn._reorder_linear_weight(part.tensor().contiguous(), None)
        return cls(weight, joined_bias([part], None))

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def joined_bias(parts: Sequence[Part], dtype: torch.dtype | None) -> Tensor | None:
    """The biases of all parts behind each other; None when no part has one."""
    biases = [part.bias().to(dtype) for part in parts if part.bias]
    return torch.cat(biases).contiguous() if biases else None
