"""What a model asks of the KV cache. No torch."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.spec import Codec, KVCacheSpec, KVFormat
from kvtrove.models.spec import ModelSpec


def cache_spec(spec: ModelSpec, dtype: str, block_size: int) -> KVCacheSpec:
    """The exact cache of a model: what its layers keep, in `dtype`. block_size: tokens per block."""
    layers = (replace(layer.cache, format=in_dtype(layer.cache.format, dtype)) for layer in spec.layers)
    return KVCacheSpec(tuple(layers), block_size, dtype)


def in_dtype(kv_format: KVFormat, dtype: str) -> KVFormat:
    """The same sides, as they are computed."""

    def codec(side: Codec | None) -> Codec | None:
        return None if side is None else Dense(side.side, dtype)

    return replace(kv_format, k=codec(kv_format.k), v=codec(kv_format.v))
