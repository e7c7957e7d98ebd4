"""Attention as a layer sees it: projections and head norms; rotation and where K/V live are the backend's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import LayerSpec, ModelSpec

Attend = Callable[[int, Tensor, Tensor | None, Tensor | None, Rotation], Tensor]
"""attend(layer, q [T, num_heads, head_dim], k [T, kv_heads, head_dim], v, rotate) -> [T, num_heads, head_dim].

q and k are still to be rotated, q perhaps in place. k and v are None when the layer reads another layer's storage.
"""


@dataclass(frozen=True, eq=False)
class Attention:
    """qkv: queries, keys and values, or queries alone when the layer reads another's storage (`LayerKV.source`)."""

    head_dim: int
    qkv: Joint
    o: Product
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, layer: LayerSpec) -> Attention:
        hidden, bias, own = spec.hidden_size, spec.attention_bias, layer.cache.source is None
        wide, narrow = spec.num_heads * layer.cache.k_dim, layer.cache.heads * layer.cache.k_dim

        def norm(part: str) -> RMSNorm | None:
            wanted = spec.qk_norm and (own or part == "q_norm")
            return (
                RMSNorm.load(weights.take, f"{name}.{part}", layer.cache.k_dim, spec.norm_eps, spec.norm_offset)
                if wanted
                else None
            )

        projections = {f"{name}.q_proj": wide}
        if own:
            projections |= {f"{name}.k_proj": narrow, f"{name}.v_proj": narrow}
        return cls(
            layer.cache.k_dim,
            qkv=weights.joint(projections, hidden, bias),
            o=weights.linear(f"{name}.o_proj", (hidden, wide), spec.output_bias),
            q_norm=norm("q_norm"),
            k_norm=norm("k_norm"),
        )

    def mix(self, index: int, qkv: Sequence[Tensor], rotate: Rotation, attend: Attend) -> Tensor:
        """What heads read, [T, num_heads * head_dim]. qkv: what its projections gave, each [T, heads * head_dim]."""
        q, *kv = [y.view(y.shape[0], -1, self.head_dim) for y in qkv]
        k, v = kv or (None, None)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None and k is not None:
            k = self.k_norm(k)
        return attend(index, q, k, v, rotate).reshape(q.shape[0], -1)
