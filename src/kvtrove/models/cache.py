"""What a model asks of the KV cache. No torch."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.plane import LayerState
from kvtrove.kv.spec import Codec, KVCacheSpec, KVFormat
from kvtrove.models.spec import ModelSpec


def cache_spec(spec: ModelSpec, dtype: str, block_size: int, activations: str | None = None) -> KVCacheSpec:
    """The exact cache of a model: what its layers keep, in `dtype`. block_size: tokens per block.

    activations: dtype of hidden states, which states of convolutions have, too; None is `dtype`.
    """
    kept = (layer.cache for layer in spec.layers)
    layers = tuple(replace(layer, format=in_dtype(layer.format, dtype)) for layer in kept if layer is not None)
    return KVCacheSpec(layers, block_size, dtype, states_of(spec, activations or dtype))


def states_of(spec: ModelSpec, activations: str) -> tuple[LayerState, ...]:
    """Running states of the layers that have one."""
    return tuple(
        LayerState(index, layer.state.kind, layer.state.planes(activations))
        for index, layer in enumerate(spec.layers)
        if layer.state is not None
    )


def in_dtype(kv_format: KVFormat, dtype: str) -> KVFormat:
    """The same sides, as they are computed."""

    def codec(side: Codec | None) -> Codec | None:
        return None if side is None else Dense(side.side, dtype)

    return replace(kv_format, k=codec(kv_format.k), v=codec(kv_format.v))
