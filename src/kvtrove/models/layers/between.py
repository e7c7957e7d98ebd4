"""Layers whose parts all run on the package's own kernels, joined into one call from attention to attention.

Steps of few rows are short, and a dozen calls a layer would take a quarter of them; in steps of many rows, what lies
between two products never leaves the caches. The bits are the same either way.
"""

from __future__ import annotations

import torch

from kvtrove.kernels.between import Between
from kvtrove.models.layers.linear import Joint, Product
from kvtrove.models.layers.mlp import MLP, MixtureOfExperts
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.packed import PackedLinear


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
    gate_up, down, last = mlp.gate_up.product, mlp.down, None
    if not (isinstance(o, PackedLinear) and isinstance(gate_up, PackedLinear) and isinstance(down, PackedLinear)):
        return None
    if next_qkv is not None:
        if not isinstance(next_qkv.product, PackedLinear):
            return None
        last = next_qkv.product
    return Between(o, norm, gate_up, down, next_norm, last, dtype)
