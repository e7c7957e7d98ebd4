"""Verdicts of `bench compare` where the truth is known: the same server twice, and one that is slower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kvtrove.bench.chance import ENOUGH, in_turn, of_requests, of_turns
from kvtrove.bench.compare import Change, Pairs, compare
from kvtrove.bench.results_file import StoredRun
from kvtrove.bench.settings import Slo
from kvtrove.bench.summary import Figure, summarise
from tests.unit.bench.records import steady


def run_of(**values: float) -> StoredRun:
    return StoredRun("x", None, 150, {name: Figure(value, value / 1000) for name, value in values.items()})


def verdicts(before: Sequence[StoredRun], after: Sequence[StoredRun], took_turns: bool = True) -> dict[str, str]:
    return {change.name: change.verdict for change in compare(Pairs(before, after, took_turns))}


def named(found: dict[str, str]) -> bool:
    return bool({"better", "worse"} & set(found.values()))


# ---- runs that took turns ----


def _busy(rng: np.random.Generator, runs: int) -> list[StoredRun]:
    """Of one server beside a neighbour that comes and goes: some runs in a row are slow, by all measures."""
    neighbour = 1.0 + 1.5 * (np.cumsum(rng.normal(0, 0.4, runs)) > 0)
    found = []
    for slow in neighbour * rng.lognormal(0, 0.2, runs):
        values = {f"{name}_p50": slow * rng.lognormal(0, 0.05) for name in ("ttft", "tpot", "itl", "e2e")}
        found.append(run_of(**values, request_rate=1 / slow, cached_share=rng.uniform(0, 1)))
    return found


def test_one_server_beside_a_neighbour_shows_no_difference_in_95_of_100() -> None:
    """Of the jackknife within a run, every one of these would be a difference."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        runs = _busy(rng, 2 * ENOUGH)
        turns = [rng.permutation(runs[at : at + 2]) for at in range(0, 2 * ENOUGH, 2)]
        wrong += named(verdicts([first for first, _ in turns], [second for _, second in turns]))
    assert wrong <= 200 * 0.05 + 2 * (200 * 0.05 * 0.95) ** 0.5, "two standard deviations of a binomial"


def test_a_server_that_is_slower_by_half_is_seen_beside_a_neighbour() -> None:
    rng, seen = np.random.default_rng(2), 0
    for _ in range(20):
        runs = _busy(rng, 16)
        slower = [run_of(**{n: f.value * 2.5 for n, f in run.figures.items() if n == "tpot_p50"}) for run in runs[1::2]]
        seen += verdicts(runs[::2], slower) == {"tpot_p50": "worse"}
    assert seen >= 18


def test_a_change_that_every_pair_shows_alike_has_no_spread() -> None:
    before, after = (
        [run_of(tpot_p50=n, weight_bytes=8.0) for n in range(1, 7)],
        [run_of(tpot_p50=n / 2) for n in range(1, 7)],
    )
    [change] = compare(Pairs(before, after))
    assert (change.verdict, change.spread) == ("better", 0)
    assert change.after / change.before == pytest.approx(0.5), "means are geometric, as ratios are judged"


def test_five_pairs_never_tell() -> None:
    """The likeliest of all outcomes of five coins has a chance of 1/16, both ways counted."""
    assert np.isinf(of_turns(np.ones((5, 1)))).all() or of_turns(np.ones((5, 1)))[0] > 1
    assert of_turns(np.ones((ENOUGH, 1)))[0] < 1
    assert of_turns(np.ones((14, 2))).tolist() == [0, 0], "more pairs than swaps can be listed"


def test_runs_that_did_not_take_turns_are_not_judged_by_each_other() -> None:
    assert in_turn(["1", "3", "5"], ["2", "3", "4"])
    assert not in_turn(["1", "2", "3"], ["4", "5", "6"])
    slow, fast = [run_of(tpot_p50=2.0)] * ENOUGH, [run_of(tpot_p50=1.0)] * ENOUGH
    assert verdicts(slow, fast) == {"tpot_p50": "better"}
    assert verdicts(slow, fast, took_turns=False) == {"tpot_p50": "unsure"}


# ---- one run of each ----


def _run_of_one_server(seed: int) -> StoredRun:
    """150 requests with heavy tails, of which neighbours share how busy the machine was."""
    rng = np.random.default_rng(seed)
    busy = np.repeat(rng.lognormal(0.0, 0.15, 15), 10)
    records = [
        steady(0.2 * at, busy[at] * rng.lognormal(-2.0, 0.6), busy[at] * rng.lognormal(-4.0, 0.3), 6, at, sent=0.2 * at)
        for at in range(150)
    ]
    return StoredRun("x", None, 150, summarise(records, Slo(ttft=0.3)).figures)


def test_requests_of_equal_servers_stay_within_the_spread() -> None:
    runs = [_run_of_one_server(seed) for seed in range(12)]
    pairs_of_equals = list(zip(runs, runs[1:] + runs[:1], strict=True))
    wrong = sum("unsure" in verdicts([a], [b]).values() for a, b in pairs_of_equals)
    assert wrong <= 1, "95 of 100 comparisons of equal servers find nothing"


def test_one_run_of_each_is_no_verdict() -> None:
    """However large the change: equal runs beside compilers have been 19 times apart."""
    assert verdicts([run_of(tpot_p50=1.0)], [run_of(tpot_p50=20.0)]) == {"tpot_p50": "unsure"}


@pytest.mark.parametrize(
    ("name", "before", "after", "spread", "verdict"),
    [
        ("ttft_p50", 1.0, 0.5, 0.1, "better"),
        ("ttft_p50", 0.5, 1.0, 0.1, "worse"),
        ("goodput", 1.0, 2.0, 0.1, "better"),
        ("cached_share", 0.9, 0.1, 0.1, "worse"),
        ("step_ms", 2.0, 1.0, 0.1, "better"),
        ("tokens_per_s", 2.0, 1.0, 0.1, "worse"),
        ("itl_p99", 1.0, 1.5, 0.6, "within the spread"),
        ("itl_max", 1.0, 1.5, None, ""),
        ("itl_p99", 1.0, 1.0, None, "same"),
    ],
)
def test_a_change_is_judged_by_its_spread(
    name: str, before: float, after: float, spread: float | None, verdict: str
) -> None:
    assert Change(name, before, after, spread).verdict == verdict


def test_the_spread_of_a_change_adds_both_errors() -> None:
    runs = [
        StoredRun("x", None, 150, {"ttft_p50": Figure(value, error)}) for value, error in ((1.0, 0.03), (1.5, 0.04))
    ]
    [change] = compare(Pairs(runs[:1], runs[1:]))
    assert change.change == 0.5
    assert change.spread == pytest.approx(of_requests(1) * 0.05)


def test_a_high_percentile_needs_requests_beyond_it() -> None:
    one, other = (StoredRun("x", None, 150, {"itl_p99": Figure(value, 0.001)}) for value in (1.0, 9.0))
    assert verdicts([one], [other]) == {"itl_p99": ""}


@pytest.mark.parametrize("count", [1, ENOUGH])
def test_how_late_the_client_was_is_no_verdict(count: int) -> None:
    before, after = [run_of(lag_p50=1.0)] * count, [run_of(lag_p50=9.0)] * count
    assert verdicts(before, after) == {"lag_p50": ""}
