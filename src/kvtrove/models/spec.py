"""ModelSpec: all that a config.json says, in one vocabulary. No torch: cache and planner read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from kvtrove.kv.spec import LayerKV
    from kvtrove.models.state_spec import StateSpec

Activation = Literal["silu", "gelu_tanh", "gelu"]
Norms = Literal["pre", "post", "sandwich"]
QKNorm = Literal["head", "projection", "rotated", "unweighted"]


class ModelError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message names the file, key or tensor."""


@dataclass(frozen=True)
class Temperature:
    """Queries at position p are multiplied by 1 + scale * log(1 + floor((p + first) / period)).

    Scalable softmax (arXiv 2501.19399) as Llama 4 and Ministral 3 have it.
    """

    scale: float
    period: int
    first: int = 0


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of a layer.

    rotary_dim: leading elements of a head that rotate; 0 is a layer without positions (NoPE).
    scaling: None, linear, dynamic, llama3, yarn, longrope or proportional.
    params: the scaling's own numbers under Hugging Face's names. max_position: `max_position_embeddings` of the config.
    temperature: of queries, by their position.
    """

    theta: float
    rotary_dim: int
    scaling: str | None = None
    params: tuple[tuple[str, Any], ...] = ()
    max_position: int = 0
    temperature: Temperature | None = None

    def param(self, name: str, default: Any = None) -> Any:
        """A number of the scaling; `default` when the config leaves it out or sets it to null."""
        value = dict(self.params).get(name)
        return default if value is None else value

    def stretches(self, served: int) -> bool:
        """Whether a context of `served` tokens changes the angles of all positions, the first ones included."""
        if self.scaling == "dynamic":
            return served > self.max_position
        return self.scaling == "longrope" and served > self.param("original_max_position_embeddings")


@dataclass(frozen=True)
class ClampedGate:
    """(up + 1) * gate * sigmoid(alpha * gate), with the gate up to `limit` and up within it: the experts of gpt-oss."""

    limit: float
    alpha: float


@dataclass(frozen=True)
class MoESpec:
    """Mixture of experts: each token goes to `top_k` of `num_experts`.

    norm_topk: weights of the chosen ones sum to 1. scale: multiplies them. shared_size: width of a network that every
    token visits as well, 0 without one; shared_gate: a learned share of its output counts. scoring: how logits become
    weights; corrected: a learned number an expert is added for the choice. scales_input: weights multiply what experts
    read rather than what they give (Llama 4).
    groups, top_groups: experts are chosen from the best groups alone, where the best expert decides (softmax) or the
    two best do (sigmoid). bias: router and experts add one. clamped: gates of experts, None as the model's others.
    beside: experts and a dense network read the layer side by side, and their sum is what the layer adds (Gemma 4).
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    norm_topk: bool
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    shared_size: int = 0
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    bias: bool = False
    clamped: ClampedGate | None = None
    beside: bool = False
    corrected: bool = False
    shared_gate: bool = False
    scales_input: bool = False


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: heads read one vector, `LayerKV.v_dim` elements of content and `rope` rotated ones.

    nope, rope: elements of a head's query without and with rotation. v_dim: of what a head reads. q_rank: of the
    query's own latent, None without one. interleaved: neighbours rotate together rather than halves.
    """

    q_rank: int | None
    nope: int
    rope: int
    v_dim: int
    interleaved: bool


@dataclass(frozen=True)
class PerLayerSpec:
    """A small vector of a token for every layer (Gemma 3n, 4). vocab_size: rows of the table that they come from."""

    size: int
    vocab_size: int


@dataclass(frozen=True)
class AltUpSpec:
    """Several hidden states a token, of which each layer computes one and corrects the others (arXiv 2301.13310).

    states: how many. active: the one that is computed. scaled: it is multiplied before per-layer inputs meet it.
    rank: of the low-rank map beside attention (LAuReL, arXiv 2411.07501).
    """

    states: int
    active: int
    scaled: bool
    rank: int


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: attention, or a mixer with a running state.

    intermediate_size: of its dense network, None as in the other layers. sparsity: share of that network's gates that
    become zero, the smallest ones as if they were normally distributed. tied: values are keys without norm weights
    and rotation; of `cache.k_dim`, the first `v_dim` elements are both, the others rotated (layers/tied.py).

    cache: what it keeps of every token, in the checkpoint's dtype, and which tokens it reads; None without attention.
    state: the mixer in the place of attention.
    """

    cache: LayerKV | None
    rope: RopeSpec
    moe: MoESpec | None = None
    intermediate_size: int | None = None
    tied: bool = False
    sparsity: float = 0.0
    state: StateSpec | None = None

    @property
    def kv(self) -> LayerKV:
        """`cache` of a layer that has attention."""
        assert self.cache is not None, "this layer keeps a running state"
        return self.cache


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer.

    max_position: longest context in tokens that the checkpoint is made for, rope scaling included.
    norms: of what enters attention and MLP (pre), of what they add (post: Olmo 2), or of both (sandwich: Gemma).
    norm_offset: added to RMSNorm weights (Gemma: 1). wide_norms: weights multiply in float32, then it is rounded once.
    qk_norm: of each head of q and k (head), of all heads of a projection together (projection: Olmo 2), of each head
    after rotation (rotated: Hunyuan), or that without weights, in layers that rotate (unweighted: Llama 4).
    interleaved_rope: neighbours rotate together rather than halves of a head (GLM, Llama 4).
    value_norm: values of each head are normed, without weights. layer_scalars: a number multiplies what leaves a layer.
    query_scale: multiplies q.k (usually head_dim ** -0.5). *_softcap: tanh soft-capping.
    output_gate: queries come with a gate of each element of what heads read (Qwen3-Next).
    attention_sinks: a learned score a head, of value zero, beside those of the keys (gpt-oss).
    altup: a token has several hidden states (Gemma 3n).
    embed_scale: multiplies token embeddings. residual_scale: what attention and MLP add. logit_scale: logits.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    layers: tuple[LayerSpec, ...]
    max_position: int
    norm_eps: float
    activation: Activation
    dtype: str
    query_scale: float
    tie_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QKNorm | None = None
    interleaved_rope: bool = False
    norms: Norms = "pre"
    norm_offset: float = 0.0
    wide_norms: bool = False
    value_norm: bool = False
    layer_scalars: bool = False
    per_layer: PerLayerSpec | None = None
    altup: AltUpSpec | None = None
    attention_softcap: float | None = None
    attention_sinks: bool = False
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    latent: LatentSpec | None = None
    output_gate: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def longest_context(self) -> int:
        """Most tokens that can be served on demand: "dynamic" rope stretches `factor` times past `max_position`."""
        stretch = max(layer.rope.param("factor") if layer.rope.scaling == "dynamic" else 1.0 for layer in self.layers)
        return int(self.max_position * stretch)
