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
from kvtrove.kernels.linear import Groups
from kvtrove.models.layers.altup import AltUp, AltUpStates
from kvtrove.models.layers.attention import Attend, Attention
from kvtrove.models.layers.between import joined
from kvtrove.models.layers.conv import ShortConv
from kvtrove.models.layers.delta import GatedDelta
from kvtrove.models.layers.embedding import Embedding, PackedEmbedding, embedding_of
from kvtrove.models.layers.latent import LatentAttention
from kvtrove.models.layers.linear import Part, Product, Weights
from kvtrove.models.layers.mamba import Mamba2
from kvtrove.models.layers.mlp import MLP, ExpertsBeside, MixtureOfExperts, Network
from kvtrove.models.layers.norm import NoNorm, RMSNorm
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.models.layers.per_layer import LayerTail, PerLayerInputs
from kvtrove.models.layers.rope import RotaryEmbedding, Rotation
from kvtrove.models.layers.state import StateBatch, StateMixer
from kvtrove.models.layers.tied import TiedAttention
from kvtrove.models.precision import Precision
from kvtrove.models.spec import LayerSpec, ModelSpec, RopeSpec
from kvtrove.models.state_spec import ConvSpec, DeltaSpec, MambaSpec

HEAD = "lm_head.weight"

Mixer = Attention | LatentAttention | TiedAttention | ShortConv | GatedDelta | Mamba2
"""What a layer mixes tokens with."""

Through = Callable[[int, Tensor, Tensor, Sequence[Rotation]], tuple[int, Tensor] | None]
"""through(layer, x [T, hidden_size], its projections, rotations of `Model.ropes`) -> the layer behind a range that
begins here, and what the range's last `Between` gives; None where none begins. x and the projections are overwritten.
"""


@dataclass(frozen=True, eq=False)
class Rest:
    """How a step goes on behind the last layer that stores anything: with the tokens that somebody asks about.

    rows: int64 [K] of the step's. store: keeps keys and values of that layer for all tokens. attend, through: as of
    the whole step, of these tokens.
    """

    rows: Tensor
    store: Callable[[int, Tensor, Tensor, Rotation | None], None]
    attend: Attend
    through: Through | None = None

    def storing(self, rotate: Rotation) -> Attend:
        """Attention of the last layer that stores: K and V of all tokens, queries of these, which `rotate` turns."""

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, turn: Rotation | None) -> Tensor:
            if k is not None and v is not None:
                self.store(layer, k, v, turn)
            q = q[self.rows]
            return self.attend(layer, q, None, None, None if turn is None else rotate) if len(q) else q

        return attend


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    attention_norm: RMSNorm | NoNorm
    attention: Mixer
    mlp_norm: RMSNorm | NoNorm
    mlp: Network
    attention_out_norm: RMSNorm | None = None
    mlp_out_norm: RMSNorm | None = None
    residual_scale: float = 1.0
    tail: LayerTail | None = None
    altup: AltUp | None = None

    @classmethod
    def load(cls, weights: Weights, index: int, spec: ModelSpec) -> DecoderLayer:
        layer, name = spec.layers[index], f"layers.{index}"

        def norm(part: str) -> RMSNorm:
            return RMSNorm.load(weights.take, f"{name}.{part}", spec.hidden_size, spec)

        before, after = spec.norms != "post", spec.norms != "pre"
        return cls(
            attention_norm=norm("input_layernorm") if before else NoNorm(),
            attention=load_mixer(weights, index, spec, layer),
            mlp_norm=norm("pre_feedforward_layernorm" if after else "post_attention_layernorm") if before else NoNorm(),
            mlp=load_mlp(weights, name, spec, layer),
            attention_out_norm=norm("post_attention_layernorm") if after else None,
            mlp_out_norm=norm("post_feedforward_layernorm") if after else None,
            residual_scale=spec.residual_scale,
            tail=LayerTail.load(weights, name, spec),
            altup=AltUp.load(weights, name, spec, spec.altup) if spec.altup is not None else None,
        )

    def of_attention(self, mixed: Tensor) -> Tensor:
        """What attention adds to the hidden states [T, hidden_size]. mixed: what heads read."""
        return self._scaled(self.attention.o(mixed), self.attention_out_norm)

    def of_mlp(self, normed: Tensor, x: Tensor) -> Tensor:
        """What the MLP adds to the hidden states x, of which `normed` is the norm."""
        added = self.mlp(normed, x) if isinstance(self.mlp, ExpertsBeside) else self.mlp(normed)
        return self._scaled(added, self.mlp_out_norm)

    def _scaled(self, added: Tensor, norm: RMSNorm | None) -> Tensor:
        added = added if norm is None else norm(added)
        return added if self.residual_scale == 1.0 else added * self.residual_scale


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
    per_layer: PerLayerInputs | None = None
    altup: AltUpStates | None = None

    @classmethod
    def load(
        cls,
        weights: Weights,
        head: Callable[[Tensor | Groups], Tensor | Groups],
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
        norm = RMSNorm.load(weights.take, "norm", spec.hidden_size, spec)
        given = spec.per_layer
        return cls(
            spec,
            embedding,
            tuple(layers),
            norm=norm,
            head=output,
            ropes=_ropes(spec, max_model_len, str(norm.weight.device)),
            precision=precision,
            embed_scale=float(torch.tensor(spec.embed_scale, dtype=dtype)),
            per_layer=PerLayerInputs.load(weights, spec, given, dtype) if given is not None else None,
            altup=AltUpStates.load(weights, spec, spec.altup) if spec.altup is not None else None,
        )

    def with_layers(self, layers: tuple[DecoderLayer, ...]) -> Model:
        """The same model with other layers."""
        return replace(self, layers=layers)

    def serving(self, max_model_len: int) -> Model:
        """The same weights for another longest context."""
        return replace(self, ropes=_ropes(self.spec, max_model_len, str(self.norm.weight.device)))

    @torch.inference_mode()
    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        through: Through | None = None,
        states: StateBatch | None = None,
        rest: Rest | None = None,
    ) -> Tensor:
        """Hidden states [T, hidden_size] after the last norm, for tokens, positions int64 [T] of any mix of sequences.

        attend is called once per layer with attention, in order, but for ranges of layers that `through` takes. states:
        of the step's sequences, for layers that have some. rest: only these rows are asked about, and the result has
        no others; for a model that `ends_early`.
        """
        x = self.embedding(tokens)
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        inputs = self.per_layer(tokens, x) if self.per_layer is not None else None
        rotations = self._rotations(positions, x.dtype)
        if self.altup is not None and inputs is not None:
            return self._in_states(self.altup, x, inputs, positions, attend, rest)
        y, index, projected = self.layers[0].attention_norm(x), 0, False  # projected: by the qkv of layer `index`
        while index < len(self.layers):
            layer, qkv = self.layers[index], self.layers[index].attention.qkv
            if not projected and qkv.product is not None:
                y, projected = qkv.product(y), True
            ends = rest if index == self.last_storing else None
            go = through is not None and projected and ends is None
            taken = through(index, x, y, [*rotations.values()]) if through is not None and go else None
            if taken is not None:
                index, y = taken
            else:
                rotate, call = rotations[self.spec.layers[index].rope], self.calls[index]
                if ends is not None and isinstance(layer.attention, Attention | TiedAttention):
                    rotations = self._rotations(positions[ends.rows], x.dtype)
                    turn = ends.storing(rotations[self.spec.layers[index].rope])
                    y = layer.attention.mix(index, qkv.split(y) if projected else qkv(y), rotate, turn)
                    x, attend, through = x[ends.rows], ends.attend, ends.through
                    inputs = inputs if inputs is None else inputs[ends.rows]
                    if not len(x):
                        return x
                elif isinstance(layer.attention, Attention | LatentAttention | TiedAttention):
                    y = layer.attention.mix(index, qkv.split(y) if projected else qkv(y), rotate, attend)
                else:
                    assert states is not None, "layers with a running state need the states of the step"
                    y = layer.attention.mix(qkv.split(y) if projected else qkv(y), states.layers[index], states)
                if call is None:
                    y = layer.of_attention(y)  # a name of its own would hold its input during the norm
                    y = layer.mlp_norm.of_sum(x, y)
                else:
                    y = call.between(x, y)
                index += 1
            last = self.calls[index - 1]
            projected = last is not None and last.between.has_next
            if last is None or not last.between.has_mlp:
                done, norm = self.layers[index - 1], self._norm_before(index)
                y = done.of_mlp(y, x)
                if done.tail is None:
                    y = norm.of_sum(x, y)
                else:
                    y = norm(done.tail(x, y, None if inputs is None else inputs[:, index - 1]))
        return y

    def _in_states(
        self,
        altup: AltUpStates,
        x: Tensor,
        inputs: Tensor,
        positions: Tensor,
        attend: Attend,
        rest: Rest | None,
    ) -> Tensor:
        """All layers, where a token has several hidden states. x: scaled embeddings. inputs: [T, layers, size]."""
        states, rotations = altup.begin(x), self._rotations(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            own, tail, mixer = layer.altup, layer.tail, layer.attention
            assert isinstance(mixer, Attention)
            assert own is not None
            assert tail is not None
            predicted = own.predict(states)
            x = predicted[own.spec.active]
            normed = layer.attention_norm(x)
            rope = self.spec.layers[index].rope
            rotate, ends = rotations[rope], rest if index == self.last_storing else None
            if ends is not None:
                rotations = self._rotations(positions[ends.rows], x.dtype)
                attend = ends.storing(rotations[rope])
            mixed = mixer.mix(index, mixer.qkv(normed), rotate, attend)
            if ends is not None:
                x, normed, inputs, attend = x[ends.rows], normed[ends.rows], inputs[ends.rows], ends.attend
                predicted = predicted[:, ends.rows]
                if not len(x):
                    return x
            x = (x + layer.of_attention(mixed) + own.beside(normed)) * 2.0**-0.5
            x = x + layer.of_mlp(layer.mlp_norm(x), x)
            states = own.correct(predicted, x, tail, inputs[:, index])
        return self.norm(altup.end(states))

    @cached_property
    def calls(self) -> tuple[LayerCall | None, ...]:
        """What each layer does beside attention, as far as it is one call; None for a layer without such a part."""
        dtype, ropes = getattr(torch, self.precision.activations), [*self.ropes]
        calls: list[LayerCall | None] = []
        for index, (layer, spec) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
            own, behind = layer.attention, self.layers[index + 1 : index + 2]
            between = (
                None
                if self.altup is not None
                or self.spec.residual_scale != 1.0
                or own.qk_norm not in (None, "head")
                or own.v_norm is not None
                or spec.rope.temperature is not None
                else joined(
                    own.o,
                    layer.mlp_norm,
                    layer.mlp if layer.tail is None else None,
                    self._norm_before(index + 1),
                    behind[0].attention.qkv if behind else None,
                    dtype,
                    o_norm=layer.attention_out_norm,
                    mlp_out_norm=layer.mlp_out_norm,
                )
            )
            call = None
            if between is not None and own.qkv.product is not None:
                stores = spec.cache is None or spec.cache.source is None
                call = LayerCall(between, ropes.index(spec.rope), stores, own.q_norm, own.k_norm)
            calls.append(call)
        return tuple(calls)

    @cached_property
    def last_storing(self) -> int:
        """The last layer that keeps anything of a token: those behind it read what others have stored."""
        layers = enumerate(self.spec.layers)
        return max(index for index, layer in layers if layer.state is not None or layer.kv.source is None)

    @property
    def ends_early(self) -> bool:
        """Whether tokens that nobody asks about need not pass all layers (YOCO, arXiv 2405.05254; Gemma 3n and 4)."""
        last = self.layers[self.last_storing].attention
        stores = isinstance(last, TiedAttention) or (isinstance(last, Attention) and not last.output_gate)
        return stores and self.last_storing + 1 < len(self.layers)

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> dict[RopeSpec, Rotation]:
        return {rope: table.at(positions, dtype) for rope, table in self.ropes.items()}

    def fits_range(self, index: int) -> bool:
        """Whether the layer's attention is what ranges of layers compute: no state, nothing behind what heads read."""
        mixer = self.layers[index].attention
        return not (isinstance(mixer, StateMixer) or (isinstance(mixer, Attention) and mixer.output_gate))

    def _norm_before(self, index: int) -> RMSNorm | NoNorm:
        """The norm of what enters layer `index`; the last one behind all layers."""
        return self.layers[index].attention_norm if index < len(self.layers) else self.norm

    @torch.inference_mode()
    def logits(self, hidden: Tensor, *, fine: bool = False) -> Tensor:
        """float32 [R, vocab_size] of hidden states [R, hidden_size], soft-capped where the model does so.

        fine: they are not rounded to a narrower dtype of activations, where the output matrix can do without.
        """
        logits = self.head(hidden.float() if fine and isinstance(self.head, PackedLinear) else hidden).float()
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def load_mixer(weights: Weights, index: int, spec: ModelSpec, layer: LayerSpec) -> Mixer:
    """What mixes tokens in a layer: attention, or what stands in its place."""
    name = f"layers.{index}"
    if isinstance(layer.state, ConvSpec):
        return ShortConv.load(weights, f"{name}.conv", spec, layer.state)
    if isinstance(layer.state, DeltaSpec):
        return GatedDelta.load(weights, f"{name}.linear_attn", spec, layer.state)
    if isinstance(layer.state, MambaSpec):
        return Mamba2.load(weights, f"{name}.mamba", spec, layer.state)
    name = f"{name}.self_attn"
    if spec.latent is not None:
        return LatentAttention.load(weights, name, spec, layer, spec.latent)
    return TiedAttention.load(weights, index, spec, layer) if layer.tied else Attention.load(weights, name, spec, layer)


def load_mlp(weights: Weights, name: str, spec: ModelSpec, layer: LayerSpec) -> Network:
    """name: of the layer."""
    inner, moe = layer.intermediate_size or spec.intermediate_size, layer.moe
    if moe is None:
        return MLP.load(weights, f"{name}.mlp", spec, inner, spec.mlp_bias, sparsity=layer.sparsity)
    if moe.beside:
        return ExpertsBeside.load(weights, name, spec, moe, inner)
    return MixtureOfExperts.load(weights, f"{name}.mlp", spec, moe)


def _ropes(spec: ModelSpec, max_model_len: int, device: str) -> Mapping[RopeSpec, RotaryEmbedding]:
    return {rope: RotaryEmbedding.build(rope, max_model_len, device) for rope in {layer.rope for layer in spec.layers}}


def _ends(
    weights: Weights, head: Callable[[Tensor | Groups], Tensor | Groups], spec: ModelSpec, dtype: torch.dtype
) -> tuple[Embedding | PackedEmbedding, Product]:
    """Embedding and output matrix."""
    shape = (spec.vocab_size, spec.hidden_size)
    table = weights.read("embed_tokens.weight", shape)
    output = head(table)
    tied = output is table
    part = Part(spec.vocab_size, lambda: output, kind=weights.kind("embed_tokens.weight" if tied else HEAD))
    [product] = weights.build([part], spec.hidden_size, tied)
    return embedding_of(table, product, tied, dtype), product
