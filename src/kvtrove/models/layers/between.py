"""Parts of a layer that run on the package's own kernels, joined into one call from attention to attention.

Steps of few rows are short, and a dozen calls a layer would take a quarter of them; in steps of many rows, what lies
between two products never leaves the caches. The bits are the same either way.
"""

from __future__ import annotations

import torch

from kvtrove.kernels.between import Between
from kvtrove.kernels.rows import Gate
from kvtrove.models.layers.linear import Joint, Product
from kvtrove.models.layers.mlp import MLP, Network
from kvtrove.models.layers.norm import NoNorm, RMSNorm
from kvtrove.models.layers.packed import PackedLinear


def joined(
    o: Product,
    norm: RMSNorm | NoNorm,
    mlp: Network | None,
    next_norm: RMSNorm | NoNorm,
    next_qkv: Joint | None,
    dtype: torch.dtype,
    *,
    o_norm: RMSNorm | None,
    mlp_out_norm: RMSNorm | None,
) -> Between | None:
    """As many of a layer's parts, from o on, as are ours; None when not even o is.

    mlp: None where the layer does more behind it. next_qkv: of the next layer; None behind the last one. dtype: of
    hidden states.
    """
    if not isinstance(o, PackedLinear) or isinstance(norm, NoNorm) or isinstance(next_norm, NoNorm):
        return None
    parts = _packed(mlp)
    if parts is None:
        return Between(o, norm, None, None, None, dtype, o_norm=o_norm)
    gate_up, down, gate = parts
    following = next_qkv.product if next_qkv is not None else None
    following = following if isinstance(following, PackedLinear) else None
    return Between(
        o, norm, (gate_up, down), next_norm, following, dtype, o_norm=o_norm, down_norm=mlp_out_norm, gate=gate
    )


def _packed(mlp: Network | None) -> tuple[PackedLinear, PackedLinear, Gate] | None:
    """gate_up, down and the activation; None when one of them is not ours."""
    if not isinstance(mlp, MLP) or mlp.activation == "gelu" or not mlp.plain:
        return None
    gate_up, down = mlp.gate_up.product, mlp.down
    if isinstance(gate_up, PackedLinear) and isinstance(down, PackedLinear):
        return gate_up, down, mlp.activation
    return None
