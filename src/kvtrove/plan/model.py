"""PlanModel: what a plan needs to know of a model, whether the engine can run it or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from kvtrove.kv.plane import LayerState
from kvtrove.kv.spec import LayerKV
from kvtrove.models.cache import states_of
from kvtrove.models.precision import Precision
from kvtrove.models.spec import ModelSpec
from kvtrove.plan.parameters import Parameters, count_parameters


@dataclass(frozen=True)
class PlanModel:
    """A decoder as far as memory and time depend on it.

    name: as the user wrote it. ffn: widest intermediate vector of a token in a feed-forward layer. num_experts, top_k:
    0 without a mixture of experts. max_position: longest context that is served unasked. dtype: of weights; precision:
    None when everything has that one. weight_bytes: as the engine keeps them; exact_weights: counted tensor by tensor
    (or read from the files), not estimated. assumed: words about what the config leaves open, empty when nothing is.
    spec: of a model that the engine runs. layers: those that keep keys and values; states: those that keep a running
    state.
    """

    name: str
    architecture: str
    dtype: str
    layers: tuple[LayerKV, ...]
    hidden_size: int
    vocab_size: int
    num_heads: int
    ffn: int
    max_position: int
    parameters: Parameters
    weight_bytes: int
    exact_weights: bool = True
    assumed: str = ""
    states: tuple[LayerState, ...] = ()
    num_experts: int = 0
    top_k: int = 0
    spec: ModelSpec | None = None
    precision: Precision | None = None

    @property
    def activations(self) -> str:
        """dtype of hidden states."""
        return self.precision.activations if self.precision else self.dtype

    @property
    def longest_context(self) -> int:
        """Most tokens that can be served when they are asked for; more than `max_position` with "dynamic" rope."""
        return self.max_position if self.spec is None else self.spec.longest_context

    @property
    def num_layers(self) -> int:
        return len(self.layers) + len(self.states)

    @cached_property
    def kinds(self) -> tuple[LayerKV, ...]:
        """One layer of each kind: what is largest per layer needs no others."""
        return tuple(dict.fromkeys(replace(layer, layer=0, source=None) for layer in self.layers))

    def active_parameters(self, tokens: int = 1) -> float:
        """Parameters that a step of `tokens` tokens visits, when each token's experts are drawn evenly.

        A given expert is missed by every token with probability (1 - top_k / num_experts) ** tokens.
        """
        missed = (1 - self.top_k / self.num_experts) ** tokens if self.num_experts else 0.0
        return self.parameters.every_token + (1 - missed) * self.parameters.experts

    def active_weight_bytes(self, tokens: int = 1) -> float:
        """Bytes of weights that such a step reads."""
        return self.weight_bytes * self.active_parameters(tokens) / self.parameters.total


def from_spec(spec: ModelSpec, name: str, precision: Precision) -> PlanModel:
    """The plan's view of a model that the engine runs in `precision`."""
    parameters = count_parameters(spec)
    moe = next((layer.moe for layer in spec.layers if layer.moe), None)
    dense = [
        layer.intermediate_size or spec.intermediate_size for layer in spec.layers if not layer.moe or layer.moe.beside
    ]
    return PlanModel(
        name=name,
        architecture=spec.architecture,
        dtype=precision.dtype,
        layers=tuple(layer.cache for layer in spec.layers if layer.cache is not None),
        states=states_of(spec, precision.activations),
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        num_heads=spec.num_heads,
        ffn=max([*dense, moe.intermediate_size if moe else 0]),
        max_position=spec.max_position,
        parameters=parameters,
        weight_bytes=parameters.nbytes(precision),
        num_experts=moe.num_experts if moe else 0,
        top_k=moe.top_k if moe else 0,
        spec=spec,
        precision=precision,
    )
