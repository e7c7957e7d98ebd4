"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one small vector a token is the cache of all heads.

x ── kv_a ── latent c [rank] | rotated key r [rope]         cached: c and r, read once for all heads
x ── (q_a, norm) q_b ── q_nope | q_rope of every head

score = q_nope . (W_k c) + q_rope . r = (W_k^T q_nope) . c + q_rope . r         keys are never expanded:
out   = W_v (sum of weights x c)                                                the matrices move to the queries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.models.layers.attention import Attend
from kvtrove.models.layers.linear import HeadProduct, Joint, Product, Weights
from kvtrove.models.layers.norm import RMSNorm, TurnsItself
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import LatentSpec, LayerSpec, ModelSpec

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the model's other norms have."""


@dataclass(frozen=True, eq=False)
class LatentAttention(TurnsItself):
    """qkv: latents of query (or queries) and cache. keys: nope -> rank, values: rank -> v_dim, of every head."""

    spec: LatentSpec
    rank: int
    qkv: Joint
    q_up: Product | None
    q_latent_norm: RMSNorm | None
    latent_norm: RMSNorm
    keys: HeadProduct
    values: HeadProduct
    o: Product

    @classmethod
    def load(
        cls, weights: Weights, name: str, spec: ModelSpec, layer: LayerSpec, latent: LatentSpec
    ) -> LatentAttention:
        hidden, heads, rank = spec.hidden_size, spec.num_heads, layer.kv.v_dim
        queries = heads * (latent.nope + latent.rope)

        def norm(part: str, size: int) -> RMSNorm:
            return RMSNorm(weights.take(f"{name}.{part}.weight", (size,)), LATENT_EPS)

        first = {f"{name}.q_proj": queries} if latent.q_rank is None else {f"{name}.q_a_proj": latent.q_rank}
        expand = weights.numbers(f"{name}.kv_b_proj.weight", (heads * (latent.nope + latent.v_dim), rank))
        expand = expand.to(getattr(torch, (weights.precision.activations if weights.precision else spec.dtype)))
        k, v = expand.view(heads, latent.nope + latent.v_dim, rank).split([latent.nope, latent.v_dim], dim=1)
        return cls(
            latent,
            rank,
            qkv=weights.joint(first | {f"{name}.kv_a_proj_with_mqa": rank + latent.rope}, hidden, spec.attention_bias),
            q_up=None if latent.q_rank is None else weights.linear(f"{name}.q_b_proj", (queries, latent.q_rank)),
            q_latent_norm=None if latent.q_rank is None else norm("q_a_layernorm", latent.q_rank),
            latent_norm=norm("kv_a_layernorm", rank),
            keys=weights.build_heads(k.transpose(1, 2)),
            values=weights.build_heads(v),
            o=weights.linear(f"{name}.o_proj", (hidden, heads * latent.v_dim), spec.attention_bias),
        )

    def mix(self, index: int, qkv: Sequence[Tensor], rotate: Rotation, attend: Attend) -> Tensor:
        """What heads read, [T, num_heads * v_dim]. qkv: what the first projections gave."""
        q, kv = qkv
        if self.q_up is not None and self.q_latent_norm is not None:
            q = self.q_up(self.q_latent_norm(q.contiguous()))
        plain, turned = q.view(len(q), -1, self.spec.nope + self.spec.rope).split([self.spec.nope, self.spec.rope], -1)
        latent, key = kv.split([self.rank, self.spec.rope], dim=-1)
        latent = self.latent_norm(latent.contiguous())
        k = torch.cat((latent, rotate(self._paired(key)[:, None])[:, 0]), dim=-1)[:, None]
        q = torch.cat((self.keys(plain), rotate(self._paired(turned))), dim=-1)
        return self.values(attend(index, q, k, k[..., : self.rank], None)).flatten(1)

    def _paired(self, x: Tensor) -> Tensor:
        """The order in which i rotates with i + rope / 2. Both sides of a score are reordered alike."""
        return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1) if self.spec.interleaved else x
