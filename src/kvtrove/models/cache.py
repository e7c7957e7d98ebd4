"""What a model asks of the KV cache. No torch."""

from __future__ import annotations

from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.models.spec import ModelSpec


def cache_spec(spec: ModelSpec, kv_format: KVFormat, block_size: int) -> KVCacheSpec:
    """Geometry of the cache: one LayerKV per layer, its window as a retention rule.

    block_size: tokens per block.
    """
    layers = tuple(
        LayerKV(
            index,
            layer.kv_heads,
            layer.head_dim,
            kv_format,
            Full() if layer.window is None else SlidingWindow(layer.window),
            layer.source,
        )
        for index, layer in enumerate(spec.layers)
    )
    return KVCacheSpec(layers, block_size)
