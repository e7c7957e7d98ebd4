"""KV bytes of a model: per token, constant per sequence, and in the rows and blocks of the cache.

sequence of n tokens  =  kv_bytes_per_token x n   (layers that keep every token)
                      +  kv_constant_bytes        (windows and chunks, once n has outgrown them; first tokens)

All sizes are those of the planes that codecs ask for (`KVFormat.planes`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtrove.kv.compaction.compactor import NEVER
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.plane import DTYPE_BYTES
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.models.cache import in_dtype
from kvtrove.plan.model import PlanModel


@dataclass(frozen=True)
class KVBytes:
    """per_token: of every further token. constant: what windowed layers hold at most. Without rounding to blocks."""

    per_token: int
    constant: int


def kv_bytes(cache: KVCacheSpec) -> KVBytes:
    """Sizes as papers and other engines state them: layers that read another's cache cost nothing."""
    per_token = constant = 0.0
    for layer in cache.stores:
        kept, size = _kept(cache, layer), _token_bytes(cache, layer)
        if kept is None:
            per_token += size
        else:
            constant += size * kept
    return KVBytes(round(per_token), round(constant))


def sequence_bytes(cache: KVCacheSpec, tokens: float) -> float:
    """KV bytes of one sequence of `tokens` tokens, windows included, without rounding to blocks."""
    total = 0.0
    for layer in cache.stores:
        kept = _kept(cache, layer)
        total += _token_bytes(cache, layer) * (tokens if kept is None else min(tokens, kept))
    return total


def _kept(cache: KVCacheSpec, layer: LayerKV) -> int | None:
    """Most tokens that are held at once; None when that grows with the sequence."""
    most = NEVER if cache.compactor is None else cache.compactor.most(NEVER)
    return layer.retention.kept() if most == NEVER else most


def _token_bytes(cache: KVCacheSpec, layer: LayerKV) -> float:
    return sum(plane.nbytes for plane in cache.planes(layer)) / cache.block_size


def cache_of(model: PlanModel, words: str, block_size: int, tensor_parallel: int = 1) -> KVCacheSpec:
    """The cache that the engine would build (one rank's share of it): the same groups, rows and rounding.

    words: a recipe. ConfigError when it cannot be that of this model.
    """
    layers = (
        replace(shard(layer, tensor_parallel), format=in_dtype(layer.format, model.dtype))
        for layer in model.layers
        if layer.heads  # layers without attention keep nothing
    )
    return recipe(words)(KVCacheSpec(tuple(layers), block_size, states=model.states))


def shard(layer: LayerKV, ranks: int) -> LayerKV:
    """What one tensor-parallel rank keeps: its heads, at least one of them; a latent is one head that all keep."""
    return layer if ranks == 1 else replace(layer, heads=-(-layer.heads // ranks))


def stored_as(cache: KVCacheSpec) -> str:
    """How K and V are stored, each way once: "bfloat16", or "int8, int4r"."""
    return ", ".join(dict.fromkeys(layer.format.name for layer in cache.stores))


def classic_bytes(layers: int, tokens: int, hidden: int, batch: int, element_bytes: int) -> int:
    """2 x layers x tokens x hidden x batch x bytes: the form of articles, right for multi-head attention alone."""
    return 2 * layers * tokens * hidden * batch * element_bytes


def classic_agrees(model: PlanModel, cache: KVCacheSpec) -> bool:
    """Whether the classic form is right: all tokens are kept as they are, in heads that fill the hidden size."""
    k = cache.layers[0].format.k
    if not isinstance(k, Dense):
        return False
    per_token = classic_bytes(model.num_layers, 1, model.hidden_size, 1, DTYPE_BYTES[k.dtype])
    return kv_bytes(cache) == KVBytes(per_token, 0)
