"""Attention as a layer sees it: projections and head norms; rotation and where K/V live are the backend's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import LayerSpec, ModelSpec, QKNorm

Attend = Callable[[int, Tensor, Tensor | None, Tensor | None, Rotation | None], Tensor]
"""attend(layer, q [T, num_heads, head_dim], k [T, kv_heads, head_dim], v, rotate) -> [T, num_heads, head_dim].

q and k are still to be rotated, q perhaps in place; rotate is None when they are rotated already. k and v are None when
the layer reads another layer's storage.
"""


ROTATED: tuple[QKNorm, ...] = ("rotated", "unweighted")
"""Norms that read heads after their rotation."""


@dataclass(frozen=True, eq=False)
class Attention:
    """qkv: queries, keys and values, or queries alone when the layer reads another's storage (`LayerKV.source`).

    sinks: float32 [num_heads], a score of value zero beside those of the keys; None without one.
    """

    head_dim: int
    qkv: Joint
    o: Product
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    qk_norm: QKNorm | None = None
    output_gate: bool = False
    sinks: Tensor | None = None
    v_norm: RMSNorm | None = None

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, layer: LayerSpec) -> Attention:
        hidden, bias, own = spec.hidden_size, spec.attention_bias, layer.kv.source is None
        wide, narrow = spec.num_heads * layer.kv.k_dim, layer.kv.heads * layer.kv.k_dim

        dim, turning, qk_norm = layer.kv.k_dim, layer.rope.rotary_dim, spec.qk_norm
        if qk_norm == "unweighted" and not turning:
            qk_norm = None
        order = _halves(dim, turning) if spec.interleaved_rope and turning else None

        def norm(part: str) -> RMSNorm | None:
            if qk_norm is None or not (own or part == "q_norm"):
                return None
            if qk_norm == "unweighted":
                return RMSNorm(weights.ones(dim), spec.norm_eps)
            heads = wide if part == "q_norm" else narrow
            size = heads if qk_norm == "projection" else dim
            loaded = RMSNorm.load(weights.take, f"{name}.{part}", size, spec)
            return loaded if order is None else replace(loaded, weight=loaded.weight[_of_heads(order, size)])

        projections = {f"{name}.q_proj": wide * (2 if spec.output_gate else 1)}
        if own:
            projections |= {f"{name}.k_proj": narrow, f"{name}.v_proj": narrow}
        turned = {f"{name}.q_proj": wide, f"{name}.k_proj": narrow}
        orders = {} if order is None else {part: _of_heads(order, size) for part, size in turned.items()}
        q_norm, k_norm = norm("q_norm"), norm("k_norm")
        if qk_norm == "rotated" and not own and q_norm is not None:
            # a norm of its own for another layer's keys, which are stored behind that one's: queries take the ratio
            source = f"layers.{layer.kv.source}.self_attn"
            theirs, ours = (weights.take(f"{of}.k_norm.weight", (dim,)).float() for of in (source, name))
            q_norm = replace(q_norm, weight=(q_norm.weight.float() * ours / theirs).to(q_norm.weight.dtype))
        return cls(
            dim,
            qkv=weights.joint(projections, hidden, bias, orders),
            o=weights.linear(f"{name}.o_proj", (hidden, wide), spec.output_bias),
            q_norm=q_norm,
            k_norm=k_norm,
            v_norm=value_norm(k_norm) if spec.value_norm and k_norm is not None else None,
            qk_norm=qk_norm,
            output_gate=spec.output_gate,
            sinks=weights.take(f"{name}.sinks", (spec.num_heads,)).float() if spec.attention_sinks else None,
        )

    def mix(self, index: int, qkv: Sequence[Tensor], rotate: Rotation, attend: Attend) -> Tensor:
        """What heads read, [T, num_heads * head_dim]. qkv: what its projections gave, each [T, heads * head_dim]."""
        gate = None
        if self.output_gate:  # a head's query, then its gate
            q, gate = qkv[0].unflatten(-1, (-1, 2, self.head_dim)).unbind(-2)
            qkv = [q.flatten(1), *qkv[1:]]
        if self.qk_norm == "projection":
            qkv = self._normed(qkv)
        heads = [y.view(y.shape[0], -1, self.head_dim) for y in qkv]
        if self.qk_norm in ROTATED:
            heads = self._normed([*map(rotate, heads[:2]), *heads[2:]])
        elif self.qk_norm == "head":
            heads = self._normed(heads)
        q, k, v = heads if len(heads) == 3 else (heads[0], None, None)
        if rotate.temperature is not None:
            q = q * rotate.temperature
        mixed = attend(index, q, k, v, None if self.qk_norm in ROTATED else rotate).flatten(1)
        return mixed if gate is None else mixed * gate.flatten(1).sigmoid()

    def _normed(self, qkv: Sequence[Tensor]) -> list[Tensor]:
        """Queries and, where the layer has its own, keys and values through their norms."""
        norms = (self.q_norm, self.k_norm, self.v_norm)
        return [y if norm is None else norm(y) for y, norm in zip(qkv, norms, strict=False)]


def _halves(dim: int, turning: int) -> Tensor:
    """The order in which elements of a head that rotate with their neighbours rotate with the other half."""
    return torch.cat((torch.arange(0, turning, 2), torch.arange(1, turning, 2), torch.arange(turning, dim)))


def _of_heads(order: Tensor, size: int) -> Tensor:
    """The same order in every head of a projection with `size` outputs."""
    return (torch.arange(0, size, len(order))[:, None] + order).flatten()


def value_norm(of_keys: RMSNorm) -> RMSNorm:
    """The norm of keys without its weights."""
    return RMSNorm(torch.ones_like(of_keys.weight), of_keys.eps, of_keys.wide)
