"""Computed KV between KVTrove and Hugging Face transformers: a `DynamicCache` of a cached prefix, and back.

    cache, tokens = to_dynamic_cache(llm, prompt)        transformers goes on from what KVTrove has computed
    num_tokens = from_dynamic_cache(llm, cache, tokens)  KVTrove goes on from what transformers has computed

For models whose layers all read everything and keep keys after their rotation, as transformers does. Formats that round
(int8, fp8) are decoded and encoded; whole blocks travel.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvtrove.config import ConfigError
from kvtrove.prompts import PromptLike, read_prompts
from kvtrove.request import RequestError

if TYPE_CHECKING:
    from kvtrove.engine import Engine
    from kvtrove.llm import LLM


def to_dynamic_cache(llm: LLM, prompt: PromptLike) -> tuple[Any, list[int]]:
    """transformers' DynamicCache of the longest cached prefix of a prompt, and the tokens of that prefix.

    RequestError when nothing of it is cached, ConfigError for a cache that transformers has no word for.
    """
    import torch
    from transformers import DynamicCache

    from kvtrove.kv.values import read_values

    engine = llm.llm_engine
    _refuse_others(engine)
    [read] = read_prompts([prompt], llm.get_tokenizer())
    kv = engine.kv.open(read.salt.encode())
    try:
        match = engine.kv.match(kv, array("i", read.token_ids), len(read.token_ids))
        if not match.num_tokens:
            raise RequestError("nothing of this prompt is cached; generate with it first", "prompt")
        engine.runner.rows.settle(engine.kv)
        rows = [block.id for block in match.blocks[0] if block is not None]
        cache = DynamicCache()
        dtype = getattr(torch, engine.runner.model.precision.dtype)
        for layer in range(engine.spec.num_layers):
            k, v = read_values(engine.runner.arena, layer, rows)
            k, v = (x.to(dtype).transpose(0, 1)[None].contiguous() for x in (k, v))
            cache.update(k, v, layer)
    finally:
        engine.kv.free(kv)
    return cache, list(read.token_ids[: match.num_tokens])


def from_dynamic_cache(llm: LLM, cache: Any, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
    """Take in what transformers has computed of `token_ids`: the whole blocks of it are cached then; returns how many
    tokens that are. RequestError when the cache is not of these tokens or of another model.
    """
    from kvtrove.kv.arena import Arena
    from kvtrove.kv.chain import KeyChain
    from kvtrove.kv.snapshot import put_back
    from kvtrove.kv.values import write_values

    engine = llm.llm_engine
    _refuse_others(engine)
    size, spec = engine.kv.block_size, engine.kv.spec
    layers = list(cache.layers)
    length = min(len(token_ids), *(layer.keys.shape[-2] for layer in layers))
    wanted = [(engine.kv.spec.storage(i).heads, spec.storage(i).k_dim) for i in range(engine.spec.num_layers)]
    if [(layer.keys.shape[1], layer.keys.shape[3]) for layer in layers] != wanted or layers[0].keys.shape[0] != 1:
        raise RequestError("cache: it is not of one sequence of this model", "cache")
    count = length // size
    if not count:
        return 0
    scratch = Arena(spec, count, engine.runner.arena.device)
    for index, layer in enumerate(layers):
        k, v = (x[0, :, : count * size].transpose(0, 1).to(scratch.device) for x in (layer.keys, layer.values))
        dtype = engine.runner.model.precision.dtype
        write_values(scratch, index, range(count), _as(k, dtype), _as(v, dtype))
    chain = KeyChain(engine.kv.chain_root(cache_salt.encode()), size)
    chain.extend(array("i", token_ids), count)
    rows = [(0, i, scratch.rows[i].cpu().numpy().data) for i in range(count)]
    there = put_back(engine.kv, chain, rows)
    engine.runner.rows.settle(engine.kv)
    return there * size


def _as(x: Any, dtype: str) -> Any:
    import torch

    return x.to(getattr(torch, dtype)).contiguous()


def _refuse_others(engine: Engine) -> None:
    from kvtrove.kv.retention import Full

    spec = engine.kv.spec
    plain = all(isinstance(one.retention, Full) and one.format.k and one.format.v for one in spec.layers)
    after = all(one.format.rope == "post" and not one.format.whole_block and not one.first for one in spec.layers)
    if not plain or not after or spec.states or len(spec.layers) != engine.spec.num_layers:
        raise ConfigError(
            "a DynamicCache holds keys after their rotation of layers that read everything; this cache is of another "
            "kind (windows, states, latents, first tokens stored otherwise, or a format that encodes whole blocks)"
        )
