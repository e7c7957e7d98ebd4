"""Attention as a layer sees it: projections, head norms and rotation; where K/V live is the backend's matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvtrove.models.layers.linear import Linear, Take
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import LayerSpec, ModelSpec

Attend = Callable[[int, Tensor, Tensor | None, Tensor | None], Tensor]
"""attend(layer, q [T, num_heads, head_dim], k [T, kv_heads, head_dim], v) -> [T, num_heads, head_dim].

q and k are rotated. k and v are None when the layer reads another layer's storage.
"""


@dataclass(frozen=True, eq=False)
class Attention:
    """k and v are None when the layer reads another layer's storage (`LayerSpec.source`)."""

    head_dim: int
    q: Linear
    o: Linear
    k: Linear | None = None
    v: Linear | None = None
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None

    @classmethod
    def load(cls, take: Take, name: str, spec: ModelSpec, layer: LayerSpec) -> Attention:
        hidden, bias, own = spec.hidden_size, spec.attention_bias, layer.source is None
        wide, narrow = spec.num_heads * layer.head_dim, layer.kv_heads * layer.head_dim

        def norm(part: str) -> RMSNorm | None:
            wanted = spec.qk_norm and (own or part == "q_norm")
            return (
                RMSNorm.load(take, f"{name}.{part}", layer.head_dim, spec.norm_eps, spec.norm_offset)
                if wanted
                else None
            )

        return cls(
            layer.head_dim,
            q=Linear.load(take, f"{name}.q_proj", (wide, hidden), bias),
            o=Linear.load(take, f"{name}.o_proj", (hidden, wide), spec.output_bias),
            k=Linear.load(take, f"{name}.k_proj", (narrow, hidden), bias) if own else None,
            v=Linear.load(take, f"{name}.v_proj", (narrow, hidden), bias) if own else None,
            q_norm=norm("q_norm"),
            k_norm=norm("k_norm"),
        )

    def __call__(self, index: int, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """x: [T, hidden_size] -> [T, hidden_size]."""
        q, k = self._heads(self.q, self.q_norm, x), self._heads(self.k, self.k_norm, x)
        v = self._heads(self.v, None, x)
        mixed = attend(index, rotate(q), None if k is None else rotate(k), v)  # type: ignore[arg-type]
        return self.o(mixed.flatten(1))

    def _heads(self, project: Linear | None, norm: RMSNorm | None, x: Tensor) -> Tensor | None:
        """[T, hidden_size] -> [T, heads, head_dim]."""
        if project is None:
            return None
        heads = project(x).unflatten(-1, (-1, self.head_dim))
        return heads if norm is None else norm(heads)
