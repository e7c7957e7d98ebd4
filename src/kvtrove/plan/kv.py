"""KV bytes of a model: per token, constant per sequence, and in the rows and blocks of the cache.

sequence of n tokens  =  kv_bytes_per_token x n   (layers that keep every token)
                      +  kv_constant_bytes        (layers with a window or a chunk, once n has outgrown it)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvtrove.config import KV_DTYPES, EngineConfig
from kvtrove.kv.formats import engine_format
from kvtrove.kv.retention import Full
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.plan.formats import FormatFigures, SizedFormat, find_format
from kvtrove.plan.model import LayerGeometry, PlanModel


@dataclass(frozen=True)
class KVBytes:
    """per_token: of every further token. constant: what windowed layers hold at most. Without rounding to blocks."""

    per_token: int
    constant: int


def kv_bytes(layers: Iterable[LayerGeometry], format_name: str, block_size: int = EngineConfig.block_size) -> KVBytes:
    """Sizes as papers and other engines state them: layers that read another's cache cost nothing.

    block_size: tokens that share a block's summary vectors, for formats that have them.
    """
    figures = find_format(format_name)
    per_token = constant = 0.0
    for layer in layers:
        if layer.source is not None:
            continue
        size = _token_bytes(layer, figures, block_size)
        kept = kept_tokens(layer)
        if kept is None:
            per_token += size
        else:
            constant += size * kept
    return KVBytes(round(per_token), round(constant))


def kept_tokens(layer: LayerGeometry) -> int | None:
    """Most tokens that the rule of the layer keeps at once, the newest included; None when it keeps all."""
    if isinstance(layer.retention, Full):
        return None
    rule = layer.retention
    return int(getattr(rule, "window", 0)) + int(getattr(rule, "chunk", 0)) + int(getattr(rule, "sinks", 0))


def _token_bytes(layer: LayerGeometry, figures: FormatFigures, block_size: int) -> float:
    vectors = figures.vector_bytes(layer.k_dim) + figures.vector_bytes(layer.v_dim)
    summary = figures.summary_vectors * 2 * layer.k_dim / block_size
    return layer.kv_heads * (vectors + summary) + layer.extra_bytes


def cache_of(model: PlanModel, format_name: str, block_size: int, tensor_parallel: int = 1) -> KVCacheSpec:
    """The cache that the engine would build (one rank's share of it): the same groups, rows and rounding."""
    layers = (shard(layer, tensor_parallel) for layer in model.layers)
    return KVCacheSpec(
        tuple(
            LayerKV(i, one.kv_heads, one.k_dim, _format(one, format_name), one.retention, one.source)
            for i, one in enumerate(layers)
            if one.kv_heads  # layers without attention keep nothing
        ),
        block_size,
    )


def shard(layer: LayerGeometry, ranks: int) -> LayerGeometry:
    """What one tensor-parallel rank keeps: its heads, at least one of them; a latent is kept by all."""
    return layer if layer.replicated or ranks == 1 else replace(layer, kv_heads=-(-layer.kv_heads // ranks))


def _format(layer: LayerGeometry, name: str) -> KVFormat:
    if name in KV_DTYPES and layer.k_dim == layer.v_dim and not layer.extra_bytes:
        return engine_format(name)
    return SizedFormat(find_format(name), layer.v_dim, layer.extra_bytes)


def classic_bytes(layers: int, tokens: int, hidden: int, batch: int, element_bytes: int) -> int:
    """2 x layers x tokens x hidden x batch x bytes: the form of articles, right for multi-head attention alone."""
    return 2 * layers * tokens * hidden * batch * element_bytes


def classic_agrees(model: PlanModel, format_name: str) -> bool:
    """Whether the classic form is right: all layers keep all tokens, with KV heads that fill the hidden size."""
    per_token = classic_bytes(model.num_layers, 1, model.hidden_size, 1, 1) * find_format(format_name).bits // 8
    return kv_bytes(model.layers, format_name) == KVBytes(per_token, 0)


def sequence_bytes(layers: Iterable[LayerGeometry], format_name: str, tokens: float) -> float:
    """KV bytes of one sequence of `tokens` tokens, windows included, without rounding to blocks."""
    figures = find_format(format_name)
    total = 0.0
    for layer in layers:
        if layer.source is None:
            kept = kept_tokens(layer)
            total += _token_bytes(layer, figures, 1) * (tokens if kept is None else min(tokens, kept))
    return total
