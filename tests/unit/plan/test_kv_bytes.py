"""KV bytes against figures that others published, and against the cache that the engine really lays out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.words import examples
from kvtrove.kv.recipe import recipe
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.models.cache import cache_spec
from kvtrove.plan.kv import KVBytes, cache_of, classic_agrees, classic_bytes, kv_bytes, sequence_bytes, shard
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

MIB = 2**20
PUBLISHED = {
    "Llama-3.1-8B": (configs.LLAMA_31_8B, KVBytes(131_072, 0)),
    "Llama-3.1-70B": (configs.LLAMA_31_70B, KVBytes(327_680, 0)),
    "Qwen3-8B": (configs.QWEN3_8B, KVBytes(147_456, 0)),
    "Llama-2-7B": (configs.LLAMA_2_7B, KVBytes(524_288, 0)),
    "Qwen2.5-0.5B": (configs.QWEN25_05B, KVBytes(12_288, 0)),
    "DeepSeek-V3": (configs.DEEPSEEK_V3, KVBytes(70_272, 0)),
    "Gemma-4 E2B": (configs.GEMMA4_E2B, KVBytes(6_144, 6 * MIB)),
    "AFM-3B": (configs.AFM_3B, KVBytes(35_840, 0)),
}


@pytest.mark.parametrize(("config", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_bytes_per_token_are_those_published(config: dict[str, Any], published: KVBytes, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, config))
    assert kv_bytes(cache_of(model, "bf16", 32)) == published


def test_the_classic_formula_gives_4_gib_for_llama_7b(tmp_path: Path) -> None:
    """2048 tokens x 4 sequences in fp16: an often copied article prints 8.6 GB, twice as much."""
    assert classic_bytes(32, 2048, 4096, 4, 2) == 4_294_967_296 == 4 * 2**30
    model = read_model(configs.write(tmp_path, configs.LLAMA_2_7B, torch_dtype="float16"))
    assert classic_agrees(model, cache_of(model, "auto", 32))
    assert kv_bytes(cache_of(model, "auto", 32)).per_token * 2048 * 4 == classic_bytes(32, 2048, 4096, 4, 2)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "DeepSeek-V3", "Gemma-4 E2B"])
def test_the_classic_formula_is_not_claimed_where_it_is_wrong(name: str, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, PUBLISHED[name][0]))
    assert not classic_agrees(model, cache_of(model, "auto", 32))


# recipe -> bytes of one head's K and V of 128 elements
VECTORS = {
    "fp32": 1024,
    "bf16": 512,
    "int8": 2 * (128 + 2),
    "fp8": 2 * (128 + 2),
    "int4r": 2 * (64 + 2 * 2),
    "int4": 2 * (64 + 4 * 4),
    "k=int8+v=int4r": 128 + 2 + 64 + 2 * 2,
}


def kept(*layers: LayerKV, words: str = "bf16") -> KVCacheSpec:
    return recipe(words)(KVCacheSpec(layers, 32))


def layer(heads: int, dim: int, rule: Retention | None = None, index: int = 0, source: int | None = None) -> LayerKV:
    return LayerKV(index, heads, dim, dim, dense("bfloat16"), rule or Full(), source)


@pytest.mark.parametrize(("words", "nbytes"), VECTORS.items())
def test_a_format_counts_its_scales(words: str, nbytes: int) -> None:
    assert kv_bytes(kept(layer(8, 128), words=words)).per_token == 8 * nbytes


def test_windows_are_constant_and_readers_are_free() -> None:
    rules = [Full(), SlidingWindow(100), ChunkedLocal(64)]
    layers = [layer(1, 8, rule, i) for i, rule in enumerate(rules)]
    cache = kept(*layers, layer(1, 8, index=3, source=0))
    assert kv_bytes(cache) == KVBytes(32, 32 * 164)
    assert sequence_bytes(cache, 80) == 32 * (80 + 80 + 64)


def test_a_rank_keeps_at_least_one_head_and_all_of_a_latent() -> None:
    assert shard(layer(8, 128), 4).heads == 2
    assert shard(layer(2, 128), 8).heads == 1
    latent = replace(layer(1, 576), v_dim=512, format=replace(dense("bfloat16"), v=None))
    assert shard(latent, 8) == latent


@pytest.mark.parametrize(
    "words",
    [*(word for word in examples() if "FILE" not in word), "k=int8+v=int4r", "edges=1:int8+int4r", "window=4096"],
)
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-0.5B"])
def test_the_planned_cache_is_the_one_the_engine_builds(name: str, words: str, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, PUBLISHED[name][0]))
    assert model.spec is not None
    built = recipe(words)(cache_spec(model.spec, "bfloat16", 32))
    assert cache_of(model, words, 32).fingerprint == built.fingerprint
    assert cache_of(model, words, 32).block_bytes == Arena(built, 3).rows.shape[1]


def test_whole_blocks_cost_what_the_formula_says_and_windows_are_rounded_up(tmp_path: Path) -> None:
    """Gemma-4 E2B: 3 full and 12 sliding layers in rows of equal size; the window takes whole blocks and a chunk."""
    model = read_model(configs.write(tmp_path, configs.GEMMA4_E2B))
    cache = cache_of(model, "bf16", 32)
    assert {type(group.retention) for group in cache.groups} == {Full, SlidingWindow}
    exact = sequence_bytes(cache, 32_768)
    blocks = cache.blocks_for(32_768, chunk=1) * cache.block_bytes
    assert exact < blocks < 1.2 * exact


def test_rows_of_the_latent_have_no_value_plane(tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.DEEPSEEK_V3))
    cache = cache_of(model, "bf16", 64)
    assert cache.block_bytes == 64 * 70_272
    assert [plane.name for plane in cache.planes(cache.layers[0])] == ["k"]
