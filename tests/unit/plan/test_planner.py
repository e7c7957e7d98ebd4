"""What fits: every maximum is one, every refusal names numbers that work."""

from __future__ import annotations

import re
from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.config import ConfigError, parse_size
from kvtrove.kv.manager import KVCacheManager
from kvtrove.plan.fitting import Fitting, Wishes, last
from kvtrove.plan.ledger import RESERVE_BYTES, Ledger, bar, reserve_bytes, total_for
from kvtrove.plan.model import PlanModel
from kvtrove.plan.planner import Plan, make_plan
from kvtrove.plan.presets import DEVICES, HOSTS, presets
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

GIB = 2**30


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PlanModel:
    return read_model(configs.write(tmp_path_factory.mktemp("llama"), configs.LLAMA_31_8B))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> PlanModel:
    return read_model(configs.write(tmp_path_factory.mktemp("gemma"), configs.GEMMA4_E2B))


def assert_consistent(plan: Plan) -> None:
    ledger = plan.ledger
    assert sum(ledger.entries().values()) == ledger.total
    assert ledger.free >= 0
    assert plan.fitting.blocks(plan.users, plan.context) <= plan.num_blocks
    assert ledger.kv == plan.num_blocks * plan.fitting.cache.block_bytes
    assert plan.max_context >= plan.context
    assert plan.max_users >= plan.users


def test_without_wishes_the_longest_context_and_all_memory(llama: PlanModel) -> None:
    plan = make_plan(llama, Wishes(24 * GIB))
    assert_consistent(plan)
    assert plan.users == 1
    assert plan.context == plan.max_context > 32_768
    assert plan.ledger.free < plan.fitting.cache.block_bytes + 2**20, "the cache takes all that is left"


def test_with_both_wishes_the_cache_is_just_large_enough(llama: PlanModel) -> None:
    plan = make_plan(llama, Wishes(80 * GIB, context=32_768, users=4))
    assert_consistent(plan)
    assert plan.ledger.kv == 4 * 32_768 * 131_072
    assert plan.ledger.free > 30 * GIB


def test_a_given_cache_is_taken_whole(llama: PlanModel) -> None:
    plan = make_plan(llama, Wishes(80 * GIB, kv=8 * GIB, users=2))
    assert_consistent(plan)
    assert (plan.ledger.kv, plan.context) == (8 * GIB, 32_768)


@pytest.mark.parametrize(("context", "users"), [(None, 3), (10_000, None), (None, None)])
def test_what_was_chosen_is_the_most_that_fits(llama: PlanModel, context: int | None, users: int | None) -> None:
    plan = make_plan(llama, Wishes(30 * GIB, context=context, users=users))
    assert_consistent(plan)
    fitting = plan.fitting
    assert fitting.fits(plan.users, plan.max_context)
    assert plan.max_context == llama.max_position or not fitting.fits(plan.users, plan.max_context + 1)
    assert fitting.fits(plan.max_users, plan.context)
    assert not fitting.fits(plan.max_users + 1, plan.context)


def test_the_frontier_is_tight(llama: PlanModel) -> None:
    plan = make_plan(llama, Wishes(24 * GIB))
    users, contexts = zip(*plan.frontier, strict=True)
    assert users == tuple(2**i for i in range(len(users)))
    assert list(contexts) == sorted(contexts, reverse=True)
    assert all(not plan.fitting.fits(u, c + 1) for u, c in plan.frontier if c < llama.max_position)


def test_smaller_formats_buy_more(llama: PlanModel) -> None:
    choices = {choice.name: choice for choice in make_plan(llama, Wishes(24 * GIB, context=8192)).formats}
    assert choices["int4r"].max_users > choices["k=int8+v=int4r"].max_users > choices["int8"].max_users
    assert choices["int8"].max_users > choices["auto"].max_users
    assert choices["auto"].served
    assert choices["int8"].kv.per_token == 65_536 * 130 // 128
    assert "bf16" not in choices, "that is what this model computes"


def test_windows_make_long_contexts_cheap(gemma: PlanModel) -> None:
    plan = make_plan(gemma, Wishes(16 * GIB, users=1))
    assert_consistent(plan)
    assert plan.context == 131_072, "12 of 15 layers that store anything keep 512 tokens"


@pytest.mark.parametrize(
    ("wishes", "ways"),
    [
        (Wishes(24 * GIB, context=65_536, users=4), {"context", "memory"}),
        (Wishes(24 * GIB, context=16_384, users=4), {"context", "users", "memory"}),
        (Wishes(80 * GIB, context=131_072, users=2, kv=8 * GIB), {"context", "kv"}),
        (Wishes(8 * GIB), {"memory"}),
        (Wishes(17 * GIB, users=64, reserve=GIB), {"users", "memory"}),
    ],
)
def test_a_refusal_names_what_works(llama: PlanModel, wishes: Wishes, ways: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(llama, wishes)
    offers = dict(re.findall(r"--(context|users|memory|kv) (\S+) fits", str(caught.value)))
    assert set(offers) == ways
    asked = replace(wishes, context=wishes.context or 256, users=wishes.users or 1)
    for name, text in offers.items():
        amount = parse_size(text) if name in ("memory", "kv") else int(text)
        assert_consistent(make_plan(llama, replace(asked, **{name: amount})))


def test_a_float32_cache_is_told_what_half_the_bytes_would_do(llama: PlanModel) -> None:
    wishes = Wishes(24 * GIB, context=32_768, users=1, cache="fp32")
    with pytest.raises(ConfigError, match="--cache bf16 fits"):
        make_plan(llama, wishes)


def test_a_context_beyond_the_model_is_refused(llama: PlanModel) -> None:
    with pytest.raises(ConfigError, match="context: 200000 is more than the 131072 positions"):
        make_plan(llama, Wishes(80 * GIB, context=200_000))


def test_tensor_parallel_divides_what_can_be_divided(llama: PlanModel) -> None:
    one, four = (make_plan(llama, Wishes(80 * GIB, context=8192, users=1, tensor_parallel=n)) for n in (1, 4))
    assert four.kv.per_token * 4 == one.kv.per_token
    norms = llama.parameters.replicated * 2
    assert four.ledger.weights == pytest.approx((one.ledger.weights - norms) / 4 + norms, abs=4)


def test_measured_activations_replace_the_formula(llama: PlanModel) -> None:
    wishes = Wishes(24 * GIB, context=8192, users=2, measured_activation_bytes=123_456)
    ledger = make_plan(llama, wishes).ledger
    assert (ledger.activations, ledger.measured) == (123_456, True)
    formula = make_plan(llama, replace(wishes, measured_activation_bytes=None)).ledger
    assert formula.with_measured(123_456) == replace(ledger, planned_activations=formula.activations)


def test_presets_are_plans_of_their_memory(llama: PlanModel) -> None:
    made = list(presets(llama, Wishes(1, cache="bf16")))
    assert [preset.memory for preset in made] == [size * GIB for size in (*DEVICES, *HOSTS)]
    for preset in made:
        if preset.plan is None:
            assert "--memory" in preset.why
        else:
            again = make_plan(llama, Wishes(preset.memory, cache="bf16"))
            assert (preset.plan.context, preset.plan.users) == (again.context, again.users)
            assert_consistent(preset.plan)
    assert [preset.plan is None for preset in made] == [True, False, False, False, False, False, False]


def test_planned_blocks_hold_the_planned_users(gemma: PlanModel) -> None:
    """The real manager, its pool as large as the plan says: every user's sequence grows to its full context."""
    wishes = Wishes(16 * GIB, context=3000, users=3, block_size=32, max_num_batched_tokens=512)
    plan = make_plan(gemma, wishes)
    manager = KVCacheManager(plan.fitting.cache, plan.num_blocks, enable_prefix_caching=False)
    sequences = [manager.open() for _ in range(plan.users)]
    tokens = array("i", range(plan.context))
    for start in range(0, plan.context, 512):
        chunk = min(512, plan.context - start)
        for kv in sequences:
            assert manager.allocate(kv, chunk), "the plan promised this block"
            manager.commit(kv, tokens, chunk)
    assert manager.num_blocks == plan.num_blocks


@given(st.integers(0, 10**13))
def test_the_total_for_a_use_is_the_smallest(used: int) -> None:
    total = total_for(used)
    assert total - reserve_bytes(total) >= used
    assert total - 2 - reserve_bytes(total - 2) < used


@given(st.integers(0, 300), st.integers(1, 200))
def test_last_finds_the_border(border: int, most: int) -> None:
    assert last(lambda n: n <= border, most) == min(border, most)


def test_the_bar_shows_everything_that_is_there() -> None:
    ledger = Ledger(total=1000, weights=500, kv=300, activations=1, reserve=50)
    assert bar(ledger, 20) == "WWWWWWWWWWKKKKKKAR.."
    assert len(bar(Ledger(10, 20, 5, 5, 5), 20)) == 20, "also when it does not fit"
    assert "149B" in ledger.sentence()


def test_a_missing_byte_shows_as_negative_free() -> None:
    assert Ledger(100, 90, 20, 5, 5).free == -20
    assert reserve_bytes(0) == RESERVE_BYTES


def test_fitting_is_monotone(gemma: PlanModel) -> None:
    """The searches rely on it: needs never fall when users or context grow."""
    fitting = Fitting(gemma, Wishes(16 * GIB))
    needs = [fitting.kv_needed(2, n) + fitting.activations(2, n) for n in range(1, 5000, 37)]
    assert needs == sorted(needs)
    needs = [fitting.kv_needed(n, 700) + fitting.activations(n, 700) for n in range(1, 600, 7)]
    assert needs == sorted(needs)
