"""KV bytes against figures that others published, and against the cache that the engine really lays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.config import KV_DTYPES
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats import engine_format
from kvtrove.kv.retention import ChunkedLocal, Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.models.cache import cache_spec
from kvtrove.plan.formats import FORMATS, SizedFormat, find_format
from kvtrove.plan.kv import KVBytes, cache_of, classic_agrees, classic_bytes, kv_bytes, sequence_bytes, shard
from kvtrove.plan.model import LayerGeometry
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
    assert kv_bytes(model.layers, "bfloat16") == published


def test_the_classic_formula_gives_4_gib_for_llama_7b(tmp_path: Path) -> None:
    """2048 tokens x 4 sequences in fp16: an often copied article prints 8.6 GB, twice as much."""
    assert classic_bytes(32, 2048, 4096, 4, 2) == 4_294_967_296 == 4 * 2**30
    model = read_model(configs.write(tmp_path, configs.LLAMA_2_7B, torch_dtype="float16"))
    assert classic_agrees(model, "float16")
    assert kv_bytes(model.layers, "float16").per_token * 2048 * 4 == classic_bytes(32, 2048, 4096, 4, 2)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "DeepSeek-V3", "Gemma-4 E2B"])
def test_the_classic_formula_is_not_claimed_where_it_is_wrong(name: str, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, PUBLISHED[name][0]))
    assert not classic_agrees(model, "bfloat16")


# name -> bytes of one head's K and V of 128 elements
VECTORS = {
    "float32": 1024,
    "bfloat16": 512,
    "int8": 2 * (128 + 2),
    "fp8": 256,
    "int4": 2 * (64 + 4 * 4),
    "q8_0": 2 * (4 * 34),
    "q4_0": 2 * (4 * 18),
}


@pytest.mark.parametrize(("name", "nbytes"), VECTORS.items())
def test_a_format_counts_its_scales(name: str, nbytes: int) -> None:
    assert kv_bytes([LayerGeometry(8, 128, 128)], name).per_token == 8 * nbytes


def test_summaries_are_shared_by_the_tokens_of_a_block() -> None:
    """Minimum and maximum of K per block and head, in float16 (Quest)."""
    layer = LayerGeometry(2, 64, 64)
    plain, with_summaries = (
        kv_bytes([layer], name, block_size=16).per_token for name in ("bfloat16", "bfloat16+minmax")
    )
    assert with_summaries - plain == 2 * (2 * 64 * 2) // 16


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"kv_cache_dtype: 'bf16' is not one of .*did you mean 'bfloat16'"):
        find_format("bf16")


def test_windows_are_constant_and_readers_are_free() -> None:
    layers = (
        LayerGeometry(1, 8, 8, Full()),
        LayerGeometry(1, 8, 8, SlidingWindow(100)),
        LayerGeometry(1, 8, 8, ChunkedLocal(64)),
        LayerGeometry(1, 8, 8, Full(), source=0),
    )
    assert kv_bytes(layers, "bfloat16") == KVBytes(32, 32 * 164)
    assert sequence_bytes(layers, "bfloat16", 80) == 32 * (80 + 80 + 64)


def test_a_rank_keeps_at_least_one_head_and_all_of_a_latent() -> None:
    assert shard(LayerGeometry(8, 128, 128), 4).kv_heads == 2
    assert shard(LayerGeometry(2, 128, 128), 8).kv_heads == 1
    assert shard(LayerGeometry(1, 576, 0, replicated=True), 8) == LayerGeometry(1, 576, 0, replicated=True)


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 8), st.sampled_from([32, 64, 80, 128, 576]), st.integers(0, 2))
def test_planes_hold_what_the_formula_says(name: str, heads: int, dim: int, values: int) -> None:
    """A block's planes are block_size tokens of the formula, whatever the shape of the values."""
    block_size = 32
    layer = LayerGeometry(heads, dim, (dim, 0, 96)[values])
    sized = SizedFormat(find_format(name), layer.v_dim)
    planes = sum(plane.nbytes for plane in sized.planes(heads, dim, block_size))
    assert planes == block_size * kv_bytes([layer], name, block_size).per_token


def test_formats_of_the_engine_are_planned_with_their_own_planes() -> None:
    for name in set(KV_DTYPES) - {"auto"}:
        assert find_format(name).served
        sized = SizedFormat(find_format(name)).planes(4, 64, 16)
        assert sum(p.nbytes for p in sized) == sum(p.nbytes for p in engine_format(name).planes(4, 64, 16))


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-0.5B"])
def test_the_planned_cache_is_the_one_the_engine_builds(name: str, stored: str, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, PUBLISHED[name][0]))
    assert model.spec is not None
    built = cache_spec(model.spec, engine_format(stored), 32)
    assert cache_of(model, stored, 32).fingerprint == built.fingerprint
    assert cache_of(model, stored, 32).block_bytes == Arena(built, 3).rows.shape[1]


def test_whole_blocks_cost_what_the_formula_says_and_windows_are_rounded_up(tmp_path: Path) -> None:
    """Gemma-4 E2B: 3 full and 12 sliding layers in rows of equal size; the window takes whole blocks and a chunk."""
    model = read_model(configs.write(tmp_path, configs.GEMMA4_E2B))
    cache = cache_of(model, "bfloat16", 32)
    assert {type(group.retention) for group in cache.groups} == {Full, SlidingWindow}
    exact = sequence_bytes(model.layers, "bfloat16", 32_768)
    blocks = cache.blocks_for(32_768, chunk=1) * cache.block_bytes
    assert exact < blocks < 1.2 * exact


def test_rows_of_the_latent_have_no_value_plane(tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.DEEPSEEK_V3))
    cache = cache_of(model, "bfloat16", 64)
    assert cache.block_bytes == 64 * 70_272
    spec = KVCacheSpec((LayerKV(0, 1, 576, SizedFormat(find_format("bfloat16"), 0)),), 64)
    assert [plane.name for plane in spec.planes(spec.layers[0])] == ["k"]
