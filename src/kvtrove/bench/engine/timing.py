"""Repeated measurements and what they say: medians with their standard errors; a loop that Ctrl-C may end early."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from kvtrove.bench.summary import Figure

Clock = Callable[[], float]
Watch = Callable[[str, int, int], None]
"""watch(what, rounds done, rounds in total): told as a measurement goes on."""


def silent(what: str, done: int, total: int) -> None:
    """A Watch that shows nothing."""


def median(values: list[float]) -> Figure:
    """The median; its standard error is 1.25 IQR / (1.35 sqrt n) (McGill, Tukey and Larsen 1978), from 3 values on."""
    if not values:
        return Figure(None)
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    error = 1.25 * (high - low) / (1.35 * math.sqrt(len(values))) if len(values) >= 3 else None
    return Figure(middle, error)


@dataclass
class Samples:
    """Values by name, in the order in which they were measured."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, value: float) -> None:
        self.values[name].append(value)

    def median(self, name: str) -> Figure:
        return median(self.values.get(name, []))

    def medians(self) -> Mapping[str, Figure]:
        return {name: median(values) for name, values in self.values.items()}


def scaled(figure: Figure, factor: float) -> Figure:
    """The figure in another unit."""
    if figure.value is None:
        return figure
    return Figure(figure.value * factor, None if figure.error is None else figure.error * factor)


def over(numerator: float, figure: Figure) -> Figure:
    """numerator / figure, with the relative error kept."""
    if not figure.value:
        return Figure(None)
    value = numerator / figure.value
    return Figure(value, None if figure.error is None else value * figure.error / figure.value)


def ratio(top: Figure, bottom: Figure) -> Figure:
    """top / bottom of independent medians: relative errors add like the sides of a right angle."""
    if top.value is None or not bottom.value:
        return Figure(None)
    value = top.value / bottom.value
    if top.error is None or bottom.error is None or not top.value:
        return Figure(value)
    return Figure(value, abs(value) * math.hypot(top.error / top.value, bottom.error / bottom.value))


def rounds(what: str, count: int, once: Callable[[int], None], watch: Watch = silent) -> bool:
    """Call once(0), once(1), ... `count` times. Ctrl-C ends that after the first whole round; True when it did."""
    watch(what, 0, count)
    for number in range(count):
        try:
            once(number)
        except KeyboardInterrupt:
            if number == 0:
                raise
            return True
        watch(what, number + 1, count)
    return False
