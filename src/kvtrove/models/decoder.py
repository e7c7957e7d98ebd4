"""The one decoder of all families: a ModelSpec says which parts are there.

tokens ─ embed ─┬─ norm ─ attention ─(norm)─ + ─┬─ norm ─ MLP ─(norm)─ + ─ ... ─ norm ─ hidden ─ head ─ logits
                └───────────────────────────┘   └──────────────────────┘    (norm): only with sandwich norms
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kvtrove.kernels.decoder import LayerCall
from kvtrove.models.layers.attention import Attend, Attention
from kvtrove.models.layers.between import joined
from kvtrove.models.layers.embedding import Embedding, PackedEmbedding, embedding_of
from kvtrove.models.layers.linear import Part, Product, Weights
from kvtrove.models.layers.mlp import MLP, MixtureOfExperts
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.rope import RotaryEmbedding, Rotation
from kvtrove.models.precision import Precision
from kvtrove.models.spec import ModelSpec, RopeSpec

Through = Callable[[Tensor, Tensor, Sequence[Rotation]], Tensor]
"""through(x [T, hidden_size], projections of the first layer, rotations of `Model.ropes`) -> hidden states after the
last norm. x and the projections are overwritten.
"""


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: MLP | MixtureOfExperts
    attention_out_norm: RMSNorm | None = None
    mlp_out_norm: RMSNorm | None = None

    @classmethod
    def load(cls, weights: Weights, index: int, spec: ModelSpec) -> DecoderLayer:
        layer, name = spec.layers[index], f"layers.{index}"

        def norm(part: str) -> RMSNorm:
            return RMSNorm.load(weights.take, f"{name}.{part}", spec.hidden_size, spec.norm_eps, spec.norm_offset)

        mlp: MLP | MixtureOfExperts
        if layer.moe:
            mlp = MixtureOfExperts.load(weights, f"{name}.mlp", spec, layer.moe)
        else:
            mlp = MLP.load(weights, f"{name}.mlp", spec, spec.intermediate_size, spec.mlp_bias)
        sandwich = spec.sandwich_norms
        return cls(
            attention_norm=norm("input_layernorm"),
            attention=Attention.load(weights, f"{name}.self_attn", spec, layer),
            mlp_norm=norm("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"),
            mlp=mlp,
            attention_out_norm=norm("post_attention_layernorm") if sandwich else None,
            mlp_out_norm=norm("post_feedforward_layernorm") if sandwich else None,
        )

    def __call__(self, index: int, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """Hidden states [T, hidden_size], updated in place."""
        mixed = self.attention(index, self.attention_norm(x), rotate, attend)
        normed = self.mlp_norm.of_sum(x, self.attention_out_norm(mixed) if self.attention_out_norm else mixed)
        fed = self.mlp(normed)
        return x.add_(self.mlp_out_norm(fed) if self.mlp_out_norm else fed)


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded decoder. It holds no state between calls: what it remembers is the cache behind `attend`."""

    spec: ModelSpec
    embedding: Embedding | PackedEmbedding
    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    head: Product
    ropes: Mapping[RopeSpec, RotaryEmbedding]
    precision: Precision
    embed_scale: float = 1.0  # representable in the dtype of activations

    @classmethod
    def load(
        cls,
        weights: Weights,
        head: Callable[[Tensor], Tensor],
        spec: ModelSpec,
        max_model_len: int,
        progress: Callable[[int], None],
    ) -> Model:
        """head: embedding -> output matrix [vocab_size, hidden_size]. progress: called with the layers done."""
        precision = weights.precision or Precision.plain(spec.dtype)
        dtype: torch.dtype = getattr(torch, precision.activations)
        # first, and packed at once where both are one matrix: later, the original would be held beside everything else
        embedding, output = _ends(weights, head, spec, dtype)
        layers = []
        for index in range(spec.num_layers):
            layers.append(DecoderLayer.load(weights, index, spec))
            progress(index + 1)
        norm = RMSNorm.load(weights.take, "norm", spec.hidden_size, spec.norm_eps, spec.norm_offset)
        return cls(
            spec,
            embedding,
            tuple(layers),
            norm=norm,
            head=output,
            ropes=_ropes(spec, max_model_len, str(norm.weight.device)),
            precision=precision,
            embed_scale=float(torch.tensor(spec.embed_scale, dtype=dtype)),
        )

    def serving(self, max_model_len: int) -> Model:
        """The same weights for another longest context."""
        return replace(self, ropes=_ropes(self.spec, max_model_len, str(self.norm.weight.device)))

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend, through: Through | None = None) -> Tensor:
        """Hidden states [T, hidden_size] after the last norm, for tokens, positions int64 [T] of any mix of sequences.

        attend is called once per layer, in order. through: takes all layers at once instead, as `calls` says.
        """
        x = self.embedding(tokens)
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        rotations = {rope: table.at(positions, x.dtype) for rope, table in self.ropes.items()}
        if self.calls is None:
            for index, (layer, spec) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
                x = layer(index, x, rotations[spec.rope], attend)
            return self.norm(x)
        first = self.layers[0]
        normed = first.attention_norm(x)
        if through is not None and first.attention.qkv.product is not None:
            return through(x, first.attention.qkv.product(normed), [*rotations.values()])
        return self._joined(x, first.attention.qkv(normed), rotations, attend, self.calls)

    @cached_property
    def calls(self) -> tuple[LayerCall, ...] | None:
        """What each layer does beside attention; None when some layer's parts cannot be joined."""
        dtype, ropes, calls = getattr(torch, self.precision.activations), [*self.ropes], []
        for layer, spec, behind in zip(self.layers, self.spec.layers, (*self.layers[1:], None), strict=True):
            if layer.attention_out_norm or layer.mlp_out_norm:
                return None
            own, norm, qkv = layer.attention, self.norm, None
            if behind is not None:
                norm, qkv = behind.attention_norm, behind.attention.qkv
            between = joined(own.o, layer.mlp_norm, layer.mlp, norm, qkv, dtype)
            if between is None:
                return None
            calls.append(LayerCall(between, ropes.index(spec.rope), spec.source is None, own.q_norm, own.k_norm))
        return tuple(calls)

    def _joined(
        self,
        x: Tensor,
        qkv: Sequence[Tensor],
        rotations: Mapping[RopeSpec, Rotation],
        attend: Attend,
        calls: tuple[LayerCall, ...],
    ) -> Tensor:
        """As `__call__`, from the first layer's projections on."""
        last = len(calls) - 1
        for index, (layer, spec) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
            y = calls[index].between(x, layer.attention.mix(index, qkv, rotations[spec.rope], attend))
            if index < last:
                qkv = self.layers[index + 1].attention.qkv.split(y)
        return y

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [R, vocab_size] of hidden states [R, hidden_size], soft-capped where the model does so."""
        logits = self.head(hidden).float()
        cap = self.spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _ropes(spec: ModelSpec, max_model_len: int, device: str) -> Mapping[RopeSpec, RotaryEmbedding]:
    return {rope: RotaryEmbedding.build(rope, max_model_len, device) for rope in {layer.rope for layer in spec.layers}}


def _ends(
    weights: Weights, head: Callable[[Tensor], Tensor], spec: ModelSpec, dtype: torch.dtype
) -> tuple[Embedding | PackedEmbedding, Product]:
    """Embedding and output matrix."""
    shape = (spec.vocab_size, spec.hidden_size)
    table = weights.read("embed_tokens.weight", shape)
    output = head(table)
    tied = output is table
    [product] = weights.build([Part(spec.vocab_size, lambda: output)], spec.hidden_size, tied)
    return embedding_of(table, product, tied, dtype), product
