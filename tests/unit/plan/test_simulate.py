"""The simulator: the real scheduler and cache on a virtual clock."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrove.config import ConfigError
from kvtrove.plan.cost import FittedCost
from kvtrove.plan.hardware import StepFit
from kvtrove.plan.simulate import SimulationSettings, simulate
from kvtrove.plan.simulate.report import cliffs, simulation_report
from kvtrove.plan.simulate.results import distribution
from kvtrove.plan.simulate.settings import INSTANT
from kvtrove.plan.traces import Trace, TraceRequest, read_trace
from kvtrove.scheduler.scheduler import SchedulerLimits

DATA = Path(__file__).parents[2] / "data" / "traces"
MI = 2**20
STEP = FittedCost(StepFit(fixed=0.01, per_token=1e-4, per_cached_token=1e-7, per_pair=1e-9))


def request(arrival: float, prompt: int, new: int, *blocks: int, **more: Any) -> TraceRequest:
    return TraceRequest(arrival, prompt, new, array("i", blocks), **more)


def trace(*requests: TraceRequest, block_size: int = 16) -> Trace:
    return Trace("test", block_size, requests)


def small(num_blocks: int | None = None, **changes: Any) -> SimulationSettings:
    usual = {"block_size": 16, "num_blocks": num_blocks, "cost": STEP, "limits": SchedulerLimits(8, 64, 4)}
    return SimulationSettings(**{**usual, **changes})


# LRU hit ratio of the Mooncake conversation trace in input tokens, by cache size in tokens. `kvtrove simulate` gives
# those of the other sizes (docs/eviction.md): each takes a CI some seconds.
PUBLISHED = {4 * MI: 0.185}


@pytest.fixture(scope="module")
def mooncake() -> Trace:
    return read_trace(DATA / "mooncake_conversation.jsonl.xz")


@pytest.mark.parametrize(("kv_tokens", "published"), PUBLISHED.items())
def test_hit_ratios_of_the_mooncake_trace(mooncake: Trace, kv_tokens: int, published: float) -> None:
    """12,031 requests through the real scheduler and cache, within half a point of a plain leaf-first LRU."""
    limits = SchedulerLimits(max_num_seqs=256, max_num_batched_tokens=1 << 17)
    result = simulate(mooncake, SimulationSettings(512, kv_tokens // 512, INSTANT, limits))
    assert len(result.requests) == 12_031
    assert result.token_hit_ratio == pytest.approx(published, abs=0.005)


def test_an_endless_cache_reaches_the_ideal(mooncake: Trace) -> None:
    """37.4 % on the whole trace; on its first part, what a reader of the trace counts."""
    first = replace(mooncake, requests=mooncake.requests[:1500])
    result = simulate(first, SimulationSettings(512, None, INSTANT, SchedulerLimits(256, 1 << 17)))
    assert result.token_hit_ratio == pytest.approx(result.ideal_hit_ratio, abs=1e-9)


def test_one_request_takes_the_time_of_its_steps() -> None:
    """100 tokens with a budget of 64: two steps to the first token, then one step each."""
    (done,) = simulate(trace(request(5.0, 100, 3)), small()).requests
    prefill = 2 * 0.01 + 100e-4 + 1e-9 * (100 * 101 / 2)
    decode = 0.01 + 1e-4
    assert done.ttft == pytest.approx(prefill)
    assert done.tpot == pytest.approx(decode + 1e-7 * (101 + 102) / 2)
    assert done.finished == pytest.approx(5.0 + prefill + 2 * done.tpot)


def test_equal_blocks_are_reused_and_the_rest_is_not() -> None:
    first, second, third = simulate(
        trace(request(0, 48, 1, 1, 2, 3), request(9, 60, 1, 1, 2, 3, 4), request(18, 48, 1, 1, 9, 3)), small()
    ).requests
    assert (first.cached, second.cached, third.cached) == (0, 48, 16)


def test_what_no_id_covers_is_shared_with_nobody() -> None:
    results = simulate(trace(request(0, 64, 40), request(9, 64, 40), request(18, 64, 40)), small()).requests
    assert [r.cached for r in results] == [0, 0, 0]


def test_answers_stay_in_the_cache_and_take_room() -> None:
    """A prompt of 2 blocks and an answer of nearly 4: a second such request takes the place of the first, end first."""
    twice = trace(request(0, 32, 60, 1, 2), request(9, 32, 60, 3, 4), request(18, 48, 1, 1, 2, 5))
    reused = [simulate(twice, small(num_blocks=n)).requests[2].cached for n in (6, 7, 8, 20)]
    assert reused == [0, 16, 32, 32]


def test_a_full_cache_preempts_and_still_answers_everybody() -> None:
    crowd = trace(*(request(0, 30, 60) for _ in range(6)))
    result = simulate(crowd, small(num_blocks=12))
    assert result.preemptions > 0
    assert len(result.requests) == 6
    assert result.evictions > 0


def test_what_never_fits_is_refused_and_counted() -> None:
    result = simulate(trace(request(0, 500, 10), request(0, 50, 10)), small(num_blocks=8))
    assert (result.rejected, len(result.requests)) == (1, 1)


def test_in_a_closed_session_the_next_turn_waits_for_the_answer() -> None:
    chat = trace(
        request(0, 40, 5, 1, 2, session="a"),
        request(1, 60, 5, 1, 2, 3, session="a", think_time=4.0),
        request(1, 60, 5, 7, 8, 9, session="b"),
    )
    first, second, _ = simulate(chat, small(closed=True)).requests
    assert second.arrival == pytest.approx(first.finished + 4.0)
    assert second.cached == 32
    assert simulate(chat, small()).requests[1].arrival == 1.0, "an open session goes by the clock"


def test_at_most_so_many_users_at_once() -> None:
    chats = trace(*(request(0, 40, 5, session=name) for name in "abcd"))
    result = simulate(chats, small(closed=True, users=2))
    assert result.num_users == 2
    ends = sorted(r.finished for r in result.requests)
    assert [r.arrival for r in result.requests][2:] == ends[:2], "a session begins when another has ended"


def test_a_faster_clock_brings_requests_closer() -> None:
    later = trace(request(0, 40, 5), request(10, 40, 5))
    assert simulate(later, small(speed=4.0)).requests[1].arrival == 2.5


def test_replicas_share_the_load_and_prefixes_find_their_home() -> None:
    """Two conversations in turn: round robin sends every turn to the other replica, affinity to its own."""
    turns = [
        request(i * 5.0, 16 * (i // 2 + 2), 2, *range(100 * (i % 2), 100 * (i % 2) + i // 2 + 2)) for i in range(8)
    ]
    turns.insert(1, request(2.0, 40, 2))  # the odd one makes round robin change its mind every turn
    apart, home = (simulate(trace(*turns), small(replicas=2, router=router)) for router in ("round-robin", "prefix"))
    assert {r.replica for r in apart.requests} == {r.replica for r in home.requests} == {0, 1}
    assert home.token_hit_ratio > apart.token_hit_ratio
    one = simulate(trace(*turns), small())
    assert home.token_hit_ratio == one.token_hit_ratio


def test_affinity_gives_way_when_a_replica_is_swamped() -> None:
    """Everybody shares one prefix, and all come at once."""
    crowd = trace(*(request(0.0, 64, 200, 1, 2, 3) for _ in range(30)))
    result = simulate(crowd, small(replicas=2, router="prefix"))
    counts = [sum(r.replica == i for r in result.requests) for i in (0, 1)]
    assert min(counts) >= 8


@settings(max_examples=40)
@given(data=st.data())
def test_fast_forward_changes_nothing(data: st.DataObject) -> None:
    """Runs of equal decode steps taken at once give the same results to the last bit as one by one."""
    draw = data.draw
    requests = [
        request(
            draw(st.floats(0, 3)),
            draw(st.integers(1, 90)),
            draw(st.integers(1, 70)),
            session=draw(st.sampled_from([None, "a", "b", "c"])),
            think_time=draw(st.sampled_from([0.0, 0.3])),
        )
        for _ in range(draw(st.integers(1, 12)))
    ]
    shared = [
        replace(r, blocks=array("i", range(min(r.prompt_tokens // 16, draw(st.integers(0, 5)))))) for r in requests
    ]
    load = trace(*sorted(shared, key=lambda r: r.arrival))
    how = small(
        num_blocks=draw(st.sampled_from([11, 16, 40, None])),
        replicas=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(["round-robin", "prefix"])),
        closed=draw(st.booleans()),
        cost=draw(st.sampled_from([STEP, INSTANT])),
    )
    assert simulate(load, how) == simulate(load, replace(how, fast_forward=False))


def test_figures_of_the_results() -> None:
    result = simulate(trace(request(0, 100, 3), request(0.0, 100, 3)), small())
    assert result.attainment(None, None) == 1.0
    assert result.attainment(1e-6, None) == 0.0
    assert result.goodput(10.0, 10.0) == pytest.approx(2 / result.duration)
    figures = result.as_json(slo_ttft=result.requests[0].ttft)
    assert figures["slo_attainment"] in (0.5, 1.0)
    assert set(figures["ttft"]) == {"mean", "p50", "p90", "p95", "p99", "max"}
    assert figures["tpot"]["max"] >= figures["tpot"]["p50"] > 0


def test_percentiles_are_values_that_occurred() -> None:
    figures = distribution(range(1, 101))
    assert (figures["p50"], figures["p90"], figures["p99"], figures["max"]) == (50, 90, 99, 100)
    assert distribution([7.0])["p99"] == 7.0
    assert distribution([]) == {}


def test_sessions_report_their_own_hit_ratio() -> None:
    chat = trace(
        request(0, 40, 1, 1, 2, session="a"), request(5, 40, 1, 1, 2, session="a"), request(6, 50, 1, session="b")
    )
    result = simulate(chat, small())
    assert result.hit_ratio_by_session() == {"a": 32 / 80, "b": 0.0}


def test_cliffs_are_where_a_little_cache_gains_much() -> None:
    """Five users take turns with 160 tokens each: half of that per user is worth nothing, all of it nearly all."""
    turns = [request(i * 5.0, 160, 1, *range(10 * (i % 5), 10 * (i % 5) + 10), session=str(i % 5)) for i in range(50)]
    load = trace(*turns)
    runs = [simulate(load, small(num_blocks=n, closed=False)).as_json() for n in (25, 50, 60, 200)]
    (cliff,) = cliffs(runs)
    assert cliff["from_hit_ratio"] < 0.1
    assert cliff["to_hit_ratio"] > 0.8
    assert 80 <= cliff["from_tokens_per_user"] < cliff["to_tokens_per_user"] <= 200
    report = simulation_report(load, runs, "this machine", {"ttft": 1.0})
    assert (report["assumed"], report["slo"]) == ("this machine", {"ttft": 1.0})
    assert report["token_hit_ratio"] == runs[0]["token_hit_ratio"]
    assert len(report["runs"]) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "s3-fifo"}, "policy: 's3-fifo' is not one of lru, s3fifo"),
        ({"router": "random"}, r"router: 'random' is not one of round-robin, prefix"),
        ({"replicas": 0}, "replicas: 0 must be at least 1"),
        ({"users": 0}, "users: 0 must be at least 1"),
        ({"speed": 0.0}, "speed: 0.0 must be above 0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_blocks_of_the_cache_must_fill_blocks_of_the_trace() -> None:
    with pytest.raises(
        ConfigError, match="block_size: 12 does not divide the 16 tokens of the trace's blocks; 16 works"
    ):
        simulate(trace(request(0, 40, 1)), small(block_size=12))
