"""Arrival processes have the rate and the burstiness that they claim."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from random import Random
from statistics import fmean, pvariance

import pytest

from kvtrove.bench.arrivals import arrivals, constant, gamma, poisson

N = 40_000


def gaps(times: Iterator[float], count: int = N) -> list[float]:
    return [after - before for before, after in pairwise(islice(times, count + 1))]


def counts(times: Iterator[float], window: float, windows: int) -> list[int]:
    """Arrivals in each of the first windows."""
    found = [0] * windows
    for time in times:
        if time >= window * windows:
            return found
        found[int(time / window)] += 1
    raise AssertionError("arrivals never end")


def test_constant_is_exact_and_does_not_drift() -> None:
    assert list(islice(constant(4), 5)) == [0, 0.25, 0.5, 0.75, 1.0]
    assert next(islice(constant(10), 10**6, None)) == 10**5


def test_poisson_gaps_are_exponential() -> None:
    """Mean 1/rate, variance 1/rate**2: the standard errors of both over N gaps are below 1.5 %, we allow three."""
    found = gaps(poisson(5, Random(1)))
    assert fmean(found) == pytest.approx(1 / 5, rel=0.015)
    assert pvariance(found) == pytest.approx(1 / 25, rel=0.045)
    # memoryless: a share of exp(-1) is longer than the mean
    assert sum(gap > 1 / 5 for gap in found) / N == pytest.approx(0.3679, abs=0.01)


def test_poisson_counts_have_equal_mean_and_variance() -> None:
    found = counts(poisson(5, Random(2)), window=2, windows=4000)
    assert fmean(found) == pytest.approx(10, rel=0.02)
    assert pvariance(found) == pytest.approx(10, rel=0.07)


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gamma_gaps_keep_the_rate_and_vary_by_their_shape(shape: float) -> None:
    found = gaps(gamma(5, shape, Random(3)))
    assert fmean(found) == pytest.approx(1 / 5, rel=0.04)
    assert pvariance(found) / fmean(found) ** 2 == pytest.approx(1 / shape, rel=0.1)


@pytest.mark.parametrize("kind", ["poisson", "constant", "burst"])
def test_arrivals_begin_at_zero_never_go_back_and_repeat_with_their_seed(kind: str) -> None:
    first, again = (list(islice(arrivals(kind, 3, 0.25, Random(7)), 500)) for _ in range(2))
    assert first == again
    assert first[0] == 0
    assert first == sorted(first)
    if kind != "constant":
        assert first != list(islice(arrivals(kind, 3, 0.25, Random(8)), 500))


def test_burst_is_burstier_than_poisson() -> None:
    spread = {kind: pvariance(counts(arrivals(kind, 5, 0.25, Random(4)), 2, 1000)) for kind in ("poisson", "burst")}
    assert spread["burst"] > 2 * spread["poisson"]
