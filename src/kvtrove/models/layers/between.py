"""Layers whose parts all run on the package's own kernels, joined into one call from attention to attention.

A step of few rows is short, and a dozen calls a layer would take a quarter of it. The bits are the same either way.
"""

from __future__ import annotations

import torch

from kvtrove.kernels import between
from kvtrove.kernels.between import Between
from kvtrove.models.layers.linear import Joint, Product
from kvtrove.models.layers.mlp import MLP, MixtureOfExperts
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.packed import PackedLinear

MOST_ROWS = 64
"""Of a step that is run so. In longer ones calls do not matter, and memory is let go between them."""


def joined(
    o: Product,
    norm: RMSNorm,
    mlp: MLP | MixtureOfExperts,
    next_norm: RMSNorm,
    next_qkv: Joint | None,
    dtype: torch.dtype,
) -> Between | None:
    """next_qkv: of the next layer; None behind the last one. dtype: of hidden states. None when a part is not ours."""
    if not isinstance(mlp, MLP) or mlp.activation != "silu":
        return None
    gate_up = _matrix(mlp.gate_up.product)
    first, down, last = _matrix(o), _matrix(mlp.down), _matrix(next_qkv.product) if next_qkv else None
    if first is None or gate_up is None or down is None or (next_qkv is not None and last is None):
        return None
    return Between(first, _norm(norm), gate_up, down, _norm(next_norm), last, dtype)


def _matrix(product: Product | None) -> between.Matrix | None:
    return between.Matrix(product.weights, product.bias) if isinstance(product, PackedLinear) else None


def _norm(norm: RMSNorm) -> between.Norm:
    return between.Norm(norm.weight, norm.eps, norm.wide)
