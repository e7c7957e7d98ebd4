"""Two results side by side: how much each measure changed, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

from kvtrove.bench.measures import LATENCIES, RATES, SHARES, STATISTICS
from kvtrove.bench.results_file import Stored, StoredRun
from kvtrove.bench.summary import GROUPS, Figure

CHANCE = 0.05  # that a comparison of two equal servers names any difference
_FREEDOM = GROUPS - 1  # degrees of freedom of one jackknife
_HIGH = {"_p90": 0.1, "_p95": 0.05, "_p99": 0.01}  # share of the requests beyond
_OF_THE_CLIENT = "lag_"  # how late the client was is no property of the server
_SAY_NOTHING = ("load.seed", "target.url", "target.timeout")  # settings that may differ between equal tests
_LOWER_IS_BETTER = tuple(f"{name}_" for name in LATENCIES)
_TIMES = ("_ms", ".ms", "wall_s")  # how measures of an engine end that should fall


@dataclass(frozen=True)
class Change:
    """One measure. change = after - before; spread: what chance may do to it, None when not known.

    critical: standard errors that chance may take; `compare` sets it for as many measures as it compares.
    """

    name: str
    before: Figure
    after: Figure
    critical: float = field(default_factory=lambda: critical(1))

    @property
    def change(self) -> float | None:
        if self.before.value is None or self.after.value is None:
            return None
        return self.after.value - self.before.value

    @property
    def spread(self) -> float | None:
        if self.before.error is None or self.after.error is None:
            return None
        return self.critical * math.hypot(self.before.error, self.after.error)

    @property
    def verdict(self) -> str:
        """ "better", "worse", "same" (no change at all), "within the spread", or "" when nobody can tell."""
        if self.change is None:
            return ""
        if self.change == 0:
            return "same"
        if self.spread is None or self.name.startswith(_OF_THE_CLIENT):
            return ""
        if abs(self.change) <= self.spread:
            return "within the spread"
        falls = self.change < 0
        should_fall = self.name.startswith(_LOWER_IS_BETTER) or self.name.endswith(_TIMES)
        return "better" if falls == should_fall else "worse"


def names() -> Iterator[str]:
    """Every measure, in the order in which people read them."""
    for latency in LATENCIES:
        yield from (f"{latency}_{statistic}" for statistic in STATISTICS)
    yield from RATES
    yield from SHARES


def compare(before: StoredRun, after: StoredRun) -> list[Change]:
    """Every measure that both runs have: a server's in the order of `names`, an engine's in that of the file."""
    known = dict.fromkeys([*names(), *before.figures])
    both = [(name, _figure(name, before), _figure(name, after)) for name in known]
    changes = [Change(*one) for one in both if one[1].value is not None and one[2].value is not None]
    judged = sum(change.spread is not None and not change.name.startswith(_OF_THE_CLIENT) for change in changes)
    return [replace(change, critical=critical(max(1, judged))) for change in changes]


def critical(measures: int) -> float:
    """Standard errors within which all of `measures` lie in 95 of 100 comparisons of equal servers.

    Of Student's t at CHANCE / measures (Bonferroni), by the expansion of Cornish and Fisher (Abramowitz and Stegun,
    26.7.5): an error that 20 stretches tell is itself uncertain, most of all far out.
    """
    z, freedom = NormalDist().inv_cdf(1 - CHANCE / (2 * measures)), float(_FREEDOM)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _figure(name: str, run: StoredRun) -> Figure:
    """The measure; a high percentile without an error where a stretch has less than one request beyond it.

    Whichever stretch is left out, the same few requests then make the percentile, and the jackknife sees no spread.
    """
    figure = run.figures.get(name, Figure(None))
    beyond = next((share for ending, share in _HIGH.items() if name.endswith(ending)), None)
    return figure if beyond is None or beyond * run.completed >= GROUPS else Figure(figure.value)


def pairs(before: Stored, after: Stored) -> list[tuple[StoredRun, StoredRun]]:
    """Runs of the same command that belong together: the only ones, or those of the same rate."""
    if before.kind != after.kind:
        return []
    if len(before.runs) == len(after.runs) == 1:
        return [(before.runs[0], after.runs[0])]
    rates = {run.rate: run for run in after.runs}
    return [(run, rates[run.rate]) for run in before.runs if run.rate in rates]


def differences(before: Stored, after: Stored) -> list[tuple[str, Any, Any]]:
    """Settings that were not the same: (name, before, after). What differs here may explain what differs there."""
    known = dict.fromkeys([*before.settings, *after.settings])
    values = ((name, before.settings.get(name), after.settings.get(name)) for name in known if name not in _SAY_NOTHING)
    return [(name, old, new) for name, old, new in values if old != new]
