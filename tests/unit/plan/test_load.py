"""Load formulas: against sums done by hand, and as fixed points and maxima that they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.plan.calibrate import fit_steps
from kvtrove.plan.cost import FittedCost, RooflineCost, StepWork, cost_of
from kvtrove.plan.hardware import Machine, StepFit, find_machine
from kvtrove.plan.kv import cache_of
from kvtrove.plan.load import (
    HEADROOM,
    Service,
    Workload,
    decode_seconds,
    estimate,
    max_rate,
    prefill_seconds,
    token_seconds,
)
from kvtrove.plan.model import PlanModel
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

STEADY = StepFit(fixed=0.01, per_token=1e-4, per_cached_token=1e-7, per_pair=1e-9)


@pytest.fixture
def llama(tmp_path: Path) -> PlanModel:
    return read_model(configs.write(tmp_path, configs.LLAMA_31_8B))


def service(kv_tokens: int = 10**7, max_users: int = 256) -> Service:
    return Service(FittedCost(STEADY), kv_tokens, max_users)


def test_token_seconds_is_the_area_under_the_cache_a_request_holds() -> None:
    workload, prefill, tpot = Workload(prompt=100, output=50), 2.0, 0.1
    steps = sum((workload.prompt + i) * tpot for i in range(50))
    assert token_seconds(workload, prefill, tpot) == pytest.approx(100 * prefill + steps, rel=0.01)


def test_a_prompt_is_computed_in_chunks() -> None:
    """5000 tokens with a budget of 2048: three steps, every (query, key) pair once."""
    seconds = prefill_seconds(Workload(5000, 1), service())
    assert seconds == pytest.approx(3 * 0.01 + 5000e-4 + 5000**2 / 2 * 1e-9, rel=0.001)


def test_a_hit_saves_its_share_of_the_prompt() -> None:
    cold, warm = (prefill_seconds(Workload(2000, 1, hit), service()) for hit in (0.0, 0.75))
    assert warm == pytest.approx(0.01 + 500e-4 + 500 * 1750 * 1e-9, rel=0.001)
    assert warm < cold / 3


def test_a_prompt_beside_decodes_adds_what_they_do_not_pay_already() -> None:
    """The fixed part of three steps is theirs."""
    workload = Workload(5000, 100)
    alone, beside = prefill_seconds(workload, service()), prefill_seconds(workload, service(), beside=16)
    assert alone - beside == pytest.approx(3 * 0.01)


@given(st.floats(0.01, 3.0))
def test_a_steady_state_obeys_littles_law(rate: float) -> None:
    """Sequences decoding = rate x output x TPOT, and TPOT is that of one sequence beside so many."""
    workload, where = Workload(prompt=1000, output=200), service()
    state = estimate(workload, where, rate)
    if state.bottleneck is None and state.decoding > 1:
        assert state.decoding == pytest.approx(rate * workload.output * state.tpot, rel=0.02)
        slowed = decode_seconds(workload, where, state.decoding + 1) / (1 - state.prefill_share)
        assert state.tpot == pytest.approx(slowed, rel=0.02)


@pytest.mark.parametrize(
    ("where", "workload", "bottleneck"),
    [
        (service(), Workload(20_000, 10), "prefill"),
        (service(max_users=4), Workload(100, 1000), "decode batch"),
        (service(kv_tokens=3000), Workload(1000, 100), "KV cache"),
    ],
)
def test_the_largest_rate_is_just_below_what_breaks(where: Service, workload: Workload, bottleneck: str) -> None:
    most = max_rate(workload, where)
    assert most.bottleneck is None
    assert most.rate > 0
    assert estimate(workload, where, most.rate * 1.02).bottleneck == bottleneck


def test_the_cache_is_filled_up_to_the_headroom() -> None:
    most = max_rate(Workload(1000, 100), service(kv_tokens=20_000))
    assert most.kv_tokens == pytest.approx(HEADROOM * 20_000, rel=0.01)


def test_limits_on_latency_lower_the_rate() -> None:
    workload, where = Workload(1000, 200), service()
    free, slow, fast = (
        max_rate(workload, where),
        max_rate(workload, where, tpot=0.05),
        max_rate(workload, where, tpot=0.02),
    )
    assert free.rate > slow.rate > fast.rate > 0
    assert slow.tpot <= 0.05
    assert fast.tpot <= 0.02
    assert max_rate(workload, where, ttft=0.2).ttft <= 0.2


def test_limits_that_a_single_request_misses_give_rate_zero() -> None:
    assert max_rate(Workload(1000, 200), service(), tpot=0.001).rate == 0


def test_the_roofline_of_a_memory_bound_decode(llama: PlanModel) -> None:
    """One sequence reads all weights but the embedding table, and its own cache."""
    machine = Machine("m", bandwidth=1e12, flops=1e18)
    cost = RooflineCost.of(llama, machine, cache_of(llama, "bf16", 32), typical_context=1000)
    table = 2 * llama.vocab_size * llama.hidden_size
    expected = (llama.weight_bytes - table + 1000 * 131_072) / 1e12
    assert cost.seconds(StepWork(1, 1000)) == pytest.approx(expected, rel=0.001)
    assert cost.seconds(StepWork(0)) == 0


def test_the_roofline_of_a_compute_bound_prompt(llama: PlanModel) -> None:
    """2 operations per parameter and token, and 4 x heads x head_dim x layers per (query, key) pair."""
    cost = RooflineCost.of(llama, Machine("m", 1e18, 1e15), cache_of(llama, "bf16", 32), 1000)
    pairs = 2048 * 1024
    active = llama.parameters.total - llama.vocab_size * llama.hidden_size
    expected = (2 * active * 2048 + 4 * 32 * 128 * 32 * pairs) / 1e15
    assert cost.seconds(StepWork(2048, 0, pairs)) == pytest.approx(expected, rel=0.001)


def test_measured_steps_replace_the_roofline(llama: PlanModel) -> None:
    machine = Machine("here", 1e10, 1e12, measured=True, fit=STEADY)
    assert cost_of(llama, machine, cache_of(llama, "bf16", 32), 1000) == FittedCost(STEADY)
    assert isinstance(cost_of(llama, find_machine("h100"), cache_of(llama, "bf16", 32), 1000), RooflineCost)


def test_calibration_finds_the_coefficients_again() -> None:
    works = [StepWork(n, c, p) for n in (1, 8, 64, 512) for c in (0, 500, 20_000) for p in (0, 3_000_000)]
    fitted = fit_steps([(work, FittedCost(STEADY).seconds(work)) for work in works])
    for name in ("fixed", "per_token", "per_cached_token", "per_pair"):
        assert getattr(fitted, name) == pytest.approx(getattr(STEADY, name), rel=1e-6)


def test_calibration_never_pays_for_work() -> None:
    """Noise that would make a coefficient negative leaves it out."""
    fitted = fit_steps([(StepWork(1, 0), 0.010), (StepWork(2, 100), 0.011), (StepWork(4, 5000), 0.012)])
    assert min(vars(fitted).values()) >= 0
    assert FittedCost(fitted).seconds(StepWork(2, 100)) == pytest.approx(0.011, rel=0.1)
