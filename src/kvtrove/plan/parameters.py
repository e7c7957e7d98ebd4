"""How many parameters a model has, counted tensor by tensor: what the loader will ask the checkpoint for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtrove.kv.plane import DTYPE_BYTES
from kvtrove.models.precision import Precision
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec

INT8_SCALE = 4
"""Bytes per output of an int8 matrix: a float32."""
INT4_INPUTS, INT4_GROUP = 32, 16 + 4
"""Inputs of an output of an int4 matrix that share a scale and a minimum; bytes of them and of both float16."""


@dataclass(frozen=True)
class Parameters:
    """total: all of them. every_token: those that each token is multiplied with (the embedding is a lookup, the output
    matrix is not, tied or not). experts: those of all routed experts together; a token visits top_k of num_experts.

    wide: those that the engine keeps in float32 whatever the dtype is (norm weights of Gemma). replicated: those that
    every tensor-parallel rank holds in full (norms and routers). matrices: those of linear layers, the output matrix
    included, in `outputs` rows of `groups` groups of 32 inputs altogether: what int8 and int4 weights quantise.
    """

    total: int
    every_token: int
    experts: int = 0
    wide: int = 0
    replicated: int = 0
    matrices: int = 0
    outputs: int = 0
    groups: int = 0

    def nbytes(self, precision: Precision) -> int:
        """Bytes of all of them when the engine keeps them so."""
        quantised = {"int8": self.matrices + self.outputs * INT8_SCALE, "int4": self.groups * INT4_GROUP}
        matrices = quantised.get(precision.weights, self.matrices * DTYPE_BYTES[precision.dtype])
        rest = (self.total - self.wide - self.matrices) * DTYPE_BYTES[precision.dtype]
        return rest + self.wide * DTYPE_BYTES["float32"] + matrices


def count_parameters(spec: ModelSpec) -> Parameters:
    """The tensors that the decoder loads, but corrections of a router; a tied output matrix counts once."""
    embedding = spec.vocab_size * spec.hidden_size
    head = 0 if spec.tie_embeddings else embedding
    attention = sum(_attention(spec, layer) for layer in spec.layers)
    norms = spec.hidden_size + sum(_norms(spec, layer) for layer in spec.layers)
    norms += spec.per_layer.size if spec.per_layer else 0
    dense = sum(_mlp(spec, size, spec.mlp_bias) for layer in spec.layers if (size := _dense_size(spec, layer)))
    mixtures = [layer.moe for layer in spec.layers if layer.moe]
    routers = sum(_router(spec, moe) for moe in mixtures)
    experts = [(moe, _mlp(spec, moe.intermediate_size, moe.bias)) for moe in mixtures]
    lookup, projected = _per_layer(spec)
    routers += _altup(spec)
    shared = attention + norms + routers + dense + projected + sum(o * i for o, i in _altup_matrices(spec))
    matrices = [(1, spec.vocab_size, spec.hidden_size), *_matrices(spec)]
    routed = sum(moe.num_experts * size for moe, size in experts)
    return Parameters(
        total=embedding + head + lookup + shared + routed,
        every_token=embedding + shared,
        experts=routed,
        wide=norms if spec.wide_norms else 0,
        replicated=norms + routers,
        matrices=sum(count * outputs * inputs for count, outputs, inputs in matrices),
        outputs=sum(count * outputs for count, outputs, _ in matrices),
        groups=sum(count * outputs * -(-inputs // INT4_INPUTS) for count, outputs, inputs in matrices),
    )


def _matrices(spec: ModelSpec) -> Iterator[tuple[int, int, int]]:
    """(count, outputs, inputs) of the linear layers, routers excepted."""
    for layer in spec.layers:
        for outputs, inputs in _projections(spec, layer):
            yield 1, outputs, inputs
        networks = [(1, _dense_size(spec, layer))] if _dense_size(spec, layer) else []
        if layer.moe:
            networks.append((layer.moe.num_experts, layer.moe.intermediate_size))
        for count, inner in networks:
            yield count, 2 * inner, spec.hidden_size
            yield count, spec.hidden_size, inner
    yield from ((1, *shape) for shape in _altup_matrices(spec))
    if spec.per_layer is not None:
        size, hidden = spec.per_layer.size, spec.hidden_size
        yield from [
            (1, spec.num_layers * size, hidden),
            (spec.num_layers, size, hidden),
            (spec.num_layers, hidden, size),
        ]


def _attention(spec: ModelSpec, layer: LayerSpec) -> int:
    weights = sum(outputs * inputs for outputs, inputs in _projections(spec, layer))
    if layer.state is not None:
        return weights + layer.state.others + layer.state.bias * (layer.state.projected + spec.hidden_size)
    if spec.latent is None:
        [(projected, _), _] = _projections(spec, layer)
        biases = (projected if spec.attention_bias else 0) + (spec.hidden_size if spec.output_bias else 0)
        return weights + biases + (spec.num_heads if spec.attention_sinks else 0)
    heads, latent, rank = spec.num_heads, spec.latent, layer.kv.v_dim
    biased = (latent.q_rank or 0) + layer.kv.k_dim + spec.hidden_size if spec.attention_bias else 0
    return weights + heads * (latent.nope + latent.v_dim) * rank + biased


def _projections(spec: ModelSpec, layer: LayerSpec) -> list[tuple[int, int]]:
    """(outputs, inputs) of what reads the hidden states, and of what leads back to them; k and v only where the layer
    does not read another's. Of latent attention, without the matrices that its queries absorb.
    """
    hidden = spec.hidden_size
    if layer.state is not None:
        return [(layer.state.projected, hidden), (hidden, layer.state.mixed)]
    kept = layer.kv
    if spec.latent is None:
        wide, own = spec.num_heads * kept.v_dim, kept.heads * kept.v_dim * (1 if layer.tied else 2)
        asked = wide * (1 + spec.output_gate)
        return [(asked + (own if kept.source is None else 0), hidden), (hidden, wide)]
    latent = spec.latent
    queries, back = spec.num_heads * (latent.nope + latent.rope), (hidden, spec.num_heads * latent.v_dim)
    if latent.q_rank is None:
        return [(queries + kept.k_dim, hidden), back]
    return [(latent.q_rank + kept.k_dim, hidden), (queries, latent.q_rank), back]


def _router(spec: ModelSpec, moe: MoESpec) -> int:
    scales = spec.hidden_size + moe.num_experts if moe.beside else spec.hidden_size * moe.shared_gate
    return moe.num_experts * (spec.hidden_size + moe.bias) + scales


def _per_layer(spec: ModelSpec) -> tuple[int, int]:
    """Numbers of the table of per-layer inputs, and of all that is multiplied with them."""
    if spec.per_layer is None:
        return 0, 0
    size, layers = spec.per_layer.size, spec.num_layers
    return spec.per_layer.vocab_size * layers * size, 3 * layers * size * spec.hidden_size


def _altup(spec: ModelSpec) -> int:
    """Routers, factors and scales of layers with several hidden states, all of them small."""
    if spec.altup is None:
        return 0
    n, hidden = spec.altup.states, spec.hidden_size
    return spec.num_layers * (n * hidden + n**3 + n**2 + (hidden if spec.altup.scaled else 0))


def _altup_matrices(spec: ModelSpec) -> list[tuple[int, int]]:
    """(outputs, inputs) of what makes the hidden states and leads back, and of the low-rank maps of layers."""
    if spec.altup is None:
        return []
    hidden, rank = spec.hidden_size, spec.altup.rank
    return [(hidden, hidden)] * (2 * (spec.altup.states - 1)) + [
        *[(rank, hidden)] * spec.num_layers,
        *[(hidden, rank)] * spec.num_layers,
    ]


def _dense_size(spec: ModelSpec, layer: LayerSpec) -> int:
    """Width of the network that every token visits; 0 where experts alone do."""
    if layer.moe and not layer.moe.beside:
        return layer.moe.shared_size
    return layer.intermediate_size or spec.intermediate_size


def _norms(spec: ModelSpec, layer: LayerSpec) -> int:
    if layer.state is not None:
        return 2 * spec.hidden_size
    if spec.latent is not None:
        return 2 * spec.hidden_size + layer.kv.v_dim + (spec.latent.q_rank or 0)
    heads = (spec.num_heads, layer.kv.heads) if spec.qk_norm == "projection" else (1, 1)
    weighted = spec.qk_norm not in (None, "unweighted")
    normed = sum(heads if layer.kv.source is None else heads[:1]) if weighted else 0
    whole = (4 if spec.norms == "sandwich" else 2) + (3 if layer.moe and layer.moe.beside else 0)
    whole += 2 if spec.altup else 0
    return spec.hidden_size * (whole + (spec.per_layer is not None)) + normed * layer.kv.v_dim


def _mlp(spec: ModelSpec, inner: int, bias: bool = False) -> int:
    """gate, up and down of one feed-forward network."""
    return 3 * spec.hidden_size * inner + (2 * inner + spec.hidden_size if bias else 0)
