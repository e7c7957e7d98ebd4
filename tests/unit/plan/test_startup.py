"""What an engine starts with, decided before it loads anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtrove.config import ConfigError, parse_size
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.plan.capacity import DEFAULT_SHARE
from kvtrove.plan.fitting import Wishes
from kvtrove.plan.kv import cache_of
from kvtrove.plan.model import PlanModel
from kvtrove.plan.planner import make_plan
from kvtrove.plan.source import read_model
from kvtrove.plan.startup import StartSettings, plan_start
from tests.unit.plan import configs

GIB = 2**30


@pytest.fixture
def qwen(tmp_path: Path) -> PlanModel:
    return read_model(configs.write(tmp_path, configs.QWEN25_05B))


@pytest.fixture
def cache(qwen: PlanModel) -> KVCacheSpec:
    return cache_of(qwen, "bfloat16", 32)


def test_nothing_said_takes_a_safe_share_and_the_models_own_context(qwen: PlanModel, cache: KVCacheSpec) -> None:
    capacity, ledger = plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048))
    assert capacity.max_model_len == 32_768
    assert 0 < ledger.kv <= DEFAULT_SHARE * 16 * GIB
    assert ledger.free > 0
    assert ledger.kv == capacity.num_blocks * cache.block_bytes


def test_a_given_cache_is_taken_and_shortens_the_context(qwen: PlanModel, cache: KVCacheSpec) -> None:
    capacity, ledger = plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048, kv=GIB // 8))
    assert capacity.num_blocks == GIB // 8 // cache.block_bytes
    assert capacity.max_model_len == capacity.num_blocks * 32
    assert ledger.free >= 0


def test_a_wished_context_that_the_cache_cannot_hold_is_refused(qwen: PlanModel, cache: KVCacheSpec) -> None:
    with pytest.raises(ConfigError, match=r"--max-model-len 10912 fits, or --kv 384MiB"):
        plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048, kv=GIB // 8, max_model_len=32_768))


def test_more_cache_than_there_is_names_what_fits(qwen: PlanModel, cache: KVCacheSpec) -> None:
    with pytest.raises(ConfigError, match=r"kv: 40GiB is more than what is free beside weights") as caught:
        plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048, kv=40 * GIB))
    found = re.search(r"([\d.]+GiB) fits", str(caught.value))
    assert found
    fitting = parse_size(found[1]) * 99 // 100  # the figure is rounded up to tenths
    assert plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048, kv=fitting))[1].free >= 0


def test_too_little_memory_says_what_to_lower(qwen: PlanModel, cache: KVCacheSpec) -> None:
    with pytest.raises(ConfigError, match="lower max_num_batched_tokens or max_num_seqs"):
        plan_start(qwen, cache, 7 * GIB // 4, StartSettings(256, 2048))
    capacity, _ = plan_start(qwen, cache, 7 * GIB // 4, StartSettings(8, 512))
    assert capacity.max_model_len > 1000


def test_the_context_leaves_room_for_attention(qwen: PlanModel, cache: KVCacheSpec) -> None:
    """With a cache that takes nearly all, the longest context is bounded by the working memory of attention."""
    settings = StartSettings(4, 512)
    free = 4 * GIB
    _, roomy = plan_start(qwen, cache, free, settings)
    tight = StartSettings(4, 512, kv=roomy.kv + roomy.free)
    capacity, ledger = plan_start(qwen, cache, free, tight)
    assert ledger.free >= 0
    assert capacity.max_model_len < 32_768
    with pytest.raises(ConfigError, match=f"max_model_len: .* --max-model-len {capacity.max_model_len} fits"):
        plan_start(qwen, cache, free, StartSettings(4, 512, kv=tight.kv, max_model_len=32_768))


def test_a_number_of_blocks_is_taken_as_it_is(qwen: PlanModel, cache: KVCacheSpec) -> None:
    capacity, ledger = plan_start(qwen, cache, GIB, StartSettings(256, 2048, num_blocks=64))
    assert (capacity.num_blocks, capacity.max_model_len) == (64, 64 * 32)
    assert ledger.free < 0, "who says blocks answers for the memory; the ledger shows what is missing"


def test_more_positions_than_the_model_knows(qwen: PlanModel, cache: KVCacheSpec) -> None:
    with pytest.raises(ConfigError, match="max_model_len: 50000 is more than the 32768 positions the model knows"):
        plan_start(qwen, cache, 16 * GIB, StartSettings(256, 2048, max_model_len=50_000))


def test_dynamic_rope_is_served_beyond_its_own_context_on_demand(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    model = read_model(configs.write(tmp_path, configs.QWEN25_05B, **scaling))
    cache = cache_of(model, "bfloat16", 32)
    assert plan_start(model, cache, 16 * GIB, StartSettings(256, 2048))[0].max_model_len == 32_768
    asked = StartSettings(256, 2048, max_model_len=65_536)
    assert plan_start(model, cache, 16 * GIB, asked)[0].max_model_len == 65_536
    with pytest.raises(ConfigError, match="max_model_len: 65537 is more than the 65536 positions the model knows"):
        plan_start(model, cache, 16 * GIB, StartSettings(256, 2048, max_model_len=65_537))
    plan = make_plan(model, Wishes(16 * GIB, context=65_536))
    assert plan.context == plan.max_context == 65_536
    assert make_plan(model, Wishes(16 * GIB)).context == 32_768
