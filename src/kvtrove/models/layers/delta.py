"""Gated DeltaNet (arXiv 2412.06464): a matrix S a head that is corrected by what it gets wrong.

x ── qkv ── conv, silu ── q | k | v        x ── z, b, a

    S <- exp(g) S;   S <- S + k (b (v - S^T k))^T;   out = S^T q        g = -A softplus(a + dt),  b = sigmoid(b)
    what is read = norm(out) * silu(z)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels import states as kernels
from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.layers.state import StateBatch, StateMixer, States, causal_conv, taps
from kvtrove.models.spec import ModelSpec
from kvtrove.models.state_spec import DeltaSpec

UNIT_EPS = 1e-6
"""Of the length by which queries and keys are divided."""


@dataclass(frozen=True, eq=False)
class GatedDelta(StateMixer):
    """conv: float32 [kernel, width]. decay: float32 [value_heads], A; dt: what is added to a. norm: float32 [v_dim].

    qkv: its projections, under the name of attention's.
    """

    spec: DeltaSpec
    qkv: Joint
    conv: Tensor
    decay: Tensor
    dt: Tensor
    norm: Tensor
    eps: float
    o: Product

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, state: DeltaSpec) -> GatedDelta:
        hidden, heads = spec.hidden_size, state.value_heads
        projections = {"q": state.keys, "k": state.keys, "v": state.values, "z": state.values, "b": heads, "a": heads}
        return cls(
            state,
            qkv=weights.joint({f"{name}.in_proj_{part}": size for part, size in projections.items()}, hidden),
            conv=taps(weights, f"{name}.conv1d.weight", state.width, state.kernel),
            decay=weights.take(f"{name}.A_log", (heads,)).float().exp(),
            dt=weights.take(f"{name}.dt_bias", (heads,)).float(),
            norm=weights.take(f"{name}.norm.weight", (state.v_dim,)).float(),
            eps=spec.norm_eps,
            o=weights.linear(f"{name}.out_proj", (hidden, state.values)),
        )

    def mix(self, projected: Sequence[Tensor], states: States, batch: StateBatch) -> Tensor:
        """[T, values] of what the projections gave. states: of this layer, updated in place."""
        spec = self.spec
        *qkv, z, b, a = projected
        if kernels.available(z) and states["conv"].dtype == z.dtype:
            return self.kernel(kernels.beside(projected), states, batch.starts, batch.seat_rows)
        mixed = causal_conv(torch.cat(qkv, -1), self.conv, None, states["conv"], batch, silu=True)
        q, k, v = mixed.split([spec.keys, spec.keys, spec.values], dim=-1)
        each = spec.value_heads // spec.key_heads
        q = (_unit(q.unflatten(-1, (-1, spec.k_dim))) * spec.k_dim**-0.5).repeat_interleave(each, 1)
        k = _unit(k.unflatten(-1, (-1, spec.k_dim))).repeat_interleave(each, 1)
        g = (-self.decay * F.softplus(a.float() + self.dt)).exp()
        out = delta_rule(q, k, v.unflatten(-1, (-1, spec.v_dim)), g, b.float().sigmoid(), states["matrix"], batch)
        normed = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + self.eps) * self.norm
        return (normed * F.silu(z.float().view_as(out))).to(z.dtype).flatten(1)

    @cached_property
    def kernel(self) -> kernels.DeltaKernel:
        """All of `mix` in one call."""
        sizes = {"key_heads": self.spec.key_heads, "k_dim": self.spec.k_dim}
        return kernels.DeltaKernel(self.conv, self.decay, self.dt, self.norm, **sizes, eps=self.eps, unit_eps=UNIT_EPS)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, matrix: Tensor, batch: StateBatch) -> Tensor:
    """float32 [T, heads, v_dim]. q, k: [T, heads, k_dim]; v: [T, heads, v_dim]; g, b: [T, heads], all float32.

    matrix: [num_seats, heads, k_dim, v_dim], updated. Token after token, in all sequences at once.
    """
    out = torch.empty_like(v)
    for seats, rows in batch.rounds():
        s = matrix[seats] * g[rows][:, :, None, None]
        wrong = v[rows] - (s * k[rows][..., None]).sum(-2)
        s = s + k[rows][..., None] * (wrong * b[rows][..., None])[:, :, None]
        out[rows] = (s * q[rows][..., None]).sum(-2)
        matrix[seats] = s
    return out


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)
