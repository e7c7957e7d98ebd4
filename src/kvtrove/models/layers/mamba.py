"""Mamba2 (arXiv 2405.21060): a matrix h a head that fades by a step that the token chooses.

x ── in ── z | x, B, C ── conv, silu | dt        dt = softplus(dt + bias)

    h <- exp(-A dt) h + dt x B^T;   y = h C + D x;   what is read = norm(y * silu(z))
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
from kvtrove.models.state_spec import MambaSpec


@dataclass(frozen=True, eq=False)
class Mamba2(StateMixer):
    """conv: float32 [kernel, width] and its bias. decay, skip, dt: float32 [heads], A, D and what is added to dt.

    norm: float32 [inner], normalised in each of the groups. qkv: its projections, under the name of attention's.
    """

    spec: MambaSpec
    qkv: Joint
    conv: Tensor
    conv_bias: Tensor | None
    decay: Tensor
    skip: Tensor
    dt: Tensor
    norm: Tensor
    eps: float
    o: Product

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, state: MambaSpec) -> Mamba2:
        def heads(part: str) -> Tensor:
            return weights.take(f"{name}.{part}", (state.heads,)).float()

        outputs = state.inner + state.width + state.heads
        return cls(
            state,
            qkv=weights.joint({f"{name}.in_proj": outputs}, spec.hidden_size, state.bias),
            conv=taps(weights, f"{name}.conv1d.weight", state.width, state.kernel),
            conv_bias=weights.take(f"{name}.conv1d.bias", (state.width,)).float() if state.conv_bias else None,
            decay=heads("A_log").exp(),
            skip=heads("D"),
            dt=heads("dt_bias"),
            norm=weights.take(f"{name}.norm.weight", (state.inner,)).float(),
            eps=spec.norm_eps,
            o=weights.linear(f"{name}.out_proj", (spec.hidden_size, state.inner), state.bias),
        )

    def mix(self, projected: Sequence[Tensor], states: States, batch: StateBatch) -> Tensor:
        """[T, inner] of what the projections gave. states: of this layer, updated in place."""
        spec = self.spec
        if kernels.available(projected[0]) and states["conv"].dtype == projected[0].dtype:
            return self.kernel(projected[0], states, batch.starts, batch.seat_rows)
        z, xbc, dt = projected[0].split([spec.inner, spec.width, spec.heads], dim=-1)
        mixed = causal_conv(xbc, self.conv, self.conv_bias, states["conv"], batch, silu=True)
        x, b, c = mixed.split([spec.inner, spec.groups * spec.state, spec.groups * spec.state], dim=-1)
        step = F.softplus(dt.float() + self.dt).clamp(*spec.limits)
        each = spec.heads // spec.groups
        b, c = (part.unflatten(-1, (spec.groups, -1)).repeat_interleave(each, 1) for part in (b, c))
        x = x.unflatten(-1, (spec.heads, -1))
        out = scan(x * step[..., None], b, c, (-self.decay * step).exp(), states["matrix"], batch)
        gated = (out + self.skip[:, None] * x).flatten(1) * F.silu(z.float())
        grouped = gated.unflatten(-1, (spec.groups, -1))
        normed = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return (normed.flatten(1) * self.norm).to(z.dtype)

    @cached_property
    def kernel(self) -> kernels.MambaKernel:
        """All of `mix` in one call."""
        return kernels.MambaKernel(
            *(self.conv, self.conv_bias, self.decay, self.skip, self.dt, self.norm),
            state=self.spec.state,
            groups=self.spec.groups,
            eps=self.eps,
            limits=self.spec.limits,
        )


def scan(x: Tensor, b: Tensor, c: Tensor, fade: Tensor, matrix: Tensor, batch: StateBatch) -> Tensor:
    """float32 [T, heads, head_dim]. x: [T, heads, head_dim], times the step; b, c: [T, heads, state]; fade: [T, heads].

    matrix: [num_seats, heads, head_dim, state], updated. Token after token, in all sequences at once.
    """
    out = torch.empty_like(x)
    for seats, rows in batch.rounds():
        h = matrix[seats] * fade[rows][:, :, None, None] + x[rows][..., None] * b[rows][:, :, None]
        out[rows] = (h * c[rows][:, :, None]).sum(-1)
        matrix[seats] = h
    return out
