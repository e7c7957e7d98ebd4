"""Gated short convolution of LFM2: the only state is the last inputs of a convolution over a few tokens.

x ── in ── b | c | u        out = c * conv(b * u)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.layers.state import StateBatch, StateMixer, States, causal_conv, taps
from kvtrove.models.spec import ModelSpec
from kvtrove.models.state_spec import ConvSpec


@dataclass(frozen=True, eq=False)
class ShortConv(StateMixer):
    """weight: float32 [kernel, width]; bias: float32 [width]. qkv: its projections, under the name of attention's."""

    spec: ConvSpec
    qkv: Joint
    weight: Tensor
    bias: Tensor | None
    o: Product

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, state: ConvSpec) -> ShortConv:
        width = state.width
        return cls(
            state,
            qkv=weights.joint({f"{name}.in_proj": 3 * width}, spec.hidden_size, state.bias),
            weight=taps(weights, f"{name}.conv.weight", width, state.kernel),
            bias=weights.take(f"{name}.conv.bias", (width,)).float() if state.bias else None,
            o=weights.linear(f"{name}.out_proj", (spec.hidden_size, width), state.bias),
        )

    def mix(self, projected: Sequence[Tensor], states: States, batch: StateBatch) -> Tensor:
        """[T, width] of what the projections gave. states: of this layer, updated in place."""
        b, c, u = projected[0].chunk(3, dim=-1)
        mixed = causal_conv(b * u, self.weight, self.bias, states["conv"], batch)
        return c * mixed.to(c.dtype)
