"""Attention whose values are its keys before norm weights and rotation (Gemma 4): each token is stored once.

x ── k ── u = k / rms(k)          value: u            key: w * u, of which a quarter of the elements rotate

stored    [ u | rotated elements of the key ]         640 numbers a head instead of 1024, all read as the key
query     [ w * q, 0 where keys rotate | rotated elements of q ]

score = sum over what does not rotate of (w * q) . u, plus the rotated part: keys need no copy of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.models.layers.attention import Attend, value_norm
from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.layers.norm import RMSNorm, TurnsItself
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import LayerSpec, ModelSpec


@dataclass(frozen=True, eq=False)
class TiedAttention(TurnsItself):
    """qkv: queries and keys, or queries alone where the layer reads another's storage (`LayerKV.source`).

    rotated: elements of a head that rotate. of_key: norm weights of keys, zero where they rotate, float32 [head_dim].
    """

    head_dim: int
    rotated: int
    qkv: Joint
    o: Product
    query_norm: RMSNorm
    key_norm: RMSNorm
    of_key: Tensor

    @classmethod
    def load(cls, weights: Weights, index: int, spec: ModelSpec, layer: LayerSpec) -> TiedAttention:
        kept, name = layer.kv, f"layers.{index}.self_attn"
        dim, rotated, wide = kept.v_dim, kept.k_dim - kept.v_dim, spec.num_heads * kept.v_dim
        stored = f"layers.{index if kept.source is None else kept.source}.self_attn.k_norm"  # whose keys are read
        key_norm = RMSNorm.load(weights.take, stored, dim, spec)
        of_key = key_norm.weight.float().clone()
        of_key[_turning(dim, rotated)] = 0.0
        own = {f"{name}.k_proj": kept.heads * dim} if kept.source is None else {}
        return cls(
            dim,
            rotated,
            qkv=weights.joint({f"{name}.q_proj": wide} | own, spec.hidden_size, spec.attention_bias),
            o=weights.linear(f"{name}.o_proj", (spec.hidden_size, wide), spec.output_bias),
            query_norm=RMSNorm.load(weights.take, f"{name}.q_norm", dim, spec),
            key_norm=key_norm,
            of_key=of_key,
        )

    def mix(self, index: int, qkv: Sequence[Tensor], rotate: Rotation, attend: Attend) -> Tensor:
        """What heads read, [T, num_heads * head_dim]. qkv: what its projections gave."""
        half, turning = self.rotated // 2, _turning(self.head_dim, self.rotated)
        turn = Rotation(rotate.cos[..., :half], rotate.sin[..., :half], rotate.table)
        q, *raw = (y.view(y.shape[0], -1, self.head_dim).contiguous() for y in qkv)
        q = self.query_norm(q)
        q = torch.cat(((q.float() * self.of_key).to(q.dtype), turn(q[..., turning])), dim=-1)
        k = v = None
        if raw:
            v = value_norm(self.key_norm)(raw[0])
            k = torch.cat((v, turn(self.key_norm(raw[0])[..., turning])), dim=-1)
        return attend(index, q, k, v, None).flatten(1)


def _turning(dim: int, rotated: int) -> list[int]:
    """Elements of a head that rotate: the first of each half."""
    return [*range(rotated // 2), *range(dim // 2, dim // 2 + rotated // 2)]
