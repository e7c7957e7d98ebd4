"""When conversations begin: endless streams of times in seconds, the first at 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random


def arrival_times(gap: Callable[[], float]) -> Iterator[float]:
    """0, then the running sum of gaps."""
    time = 0.0
    while True:
        yield time
        time += gap()


def constant(rate: float) -> Iterator[float]:
    """Every 1/rate seconds. Multiplied, not summed: no drift in long runs."""
    number = 0
    while True:
        yield number / rate
        number += 1


def poisson(rate: float, random: Random) -> Iterator[float]:
    """Independent users: exponential gaps of mean 1/rate, so the count in T seconds has mean and variance rate * T."""
    return arrival_times(lambda: random.expovariate(rate))


def gamma(rate: float, shape: float, random: Random) -> Iterator[float]:
    """Gamma distributed gaps of mean 1/rate and squared coefficient of variation 1/shape.

    shape 1 is Poisson, below 1 comes in bursts with long silences, above 1 is more regular (vLLM's "burstiness").
    """
    return arrival_times(lambda: random.gammavariate(shape, 1 / (rate * shape)))


def arrivals(kind: str, rate: float, burstiness: float, random: Random) -> Iterator[float]:
    """The stream for a setting: "poisson", "constant" or "burst"."""
    if kind == "constant":
        return constant(rate)
    return poisson(rate, random) if kind == "poisson" else gamma(rate, burstiness, random)
