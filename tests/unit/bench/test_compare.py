"""Verdicts of `bench compare` where the truth is known: the same server twice, and one that is slower."""

from __future__ import annotations

import numpy as np

from kvtrove.bench.compare import compare
from kvtrove.bench.results_file import StoredRun
from kvtrove.bench.settings import Slo
from kvtrove.bench.summary import Figure, summarise
from tests.unit.bench.records import steady


def _run_of_one_server(seed: int) -> StoredRun:
    """150 requests with heavy tails, of which neighbours share how busy the machine was."""
    rng = np.random.default_rng(seed)
    busy = np.repeat(rng.lognormal(0.0, 0.15, 15), 10)
    records = [
        steady(0.2 * at, busy[at] * rng.lognormal(-2.0, 0.6), busy[at] * rng.lognormal(-4.0, 0.3), 6, at, sent=0.2 * at)
        for at in range(150)
    ]
    return StoredRun("x", None, 150, summarise(records, Slo(ttft=0.3)).figures)


def test_a_server_compared_with_itself_shows_no_difference() -> None:
    runs = [_run_of_one_server(seed) for seed in range(20)]
    pairs_of_equals = list(zip(runs, runs[1:] + runs[:1], strict=True))
    wrong = sum(any(c.verdict in ("better", "worse") for c in compare(a, b)) for a, b in pairs_of_equals)
    assert wrong <= 1, "95 of 100 comparisons of equal servers find nothing"


def test_a_server_that_is_slower_by_half_is_seen() -> None:
    fast = _run_of_one_server(1)
    slower = {n: Figure(f.value and 1.5 * f.value, f.error and 1.5 * f.error) for n, f in fast.figures.items()}
    slow = StoredRun("x", None, 150, slower)
    assert {c.name: c.verdict for c in compare(fast, slow)}["ttft_mean"] == "worse"


def test_how_late_the_client_was_is_no_verdict() -> None:
    [change] = compare(*(StoredRun("x", None, 150, {"lag_p50": Figure(value, 0.001)}) for value in (1.0, 2.0)))
    assert change.verdict == ""
