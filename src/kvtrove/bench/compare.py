"""Two results side by side: how much each measure changed, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvtrove.bench.measures import LATENCIES, RATES, SHARES, STATISTICS
from kvtrove.bench.results_file import Stored, StoredRun
from kvtrove.bench.summary import Figure

CONFIDENCE = 1.96  # standard errors on either side: 95 of 100 repetitions lie within
_SAY_NOTHING = ("load.seed", "target.url", "target.timeout")  # settings that may differ between equal tests
_LOWER_IS_BETTER = tuple(f"{name}_" for name in LATENCIES)
_TIMES = ("_ms", ".ms", "wall_s")  # how measures of an engine end that should fall


@dataclass(frozen=True)
class Change:
    """One measure. change = after - before; spread: half the width of its 95 % interval, None when not known."""

    name: str
    before: Figure
    after: Figure

    @property
    def change(self) -> float | None:
        if self.before.value is None or self.after.value is None:
            return None
        return self.after.value - self.before.value

    @property
    def spread(self) -> float | None:
        if self.before.error is None or self.after.error is None:
            return None
        return CONFIDENCE * math.hypot(self.before.error, self.after.error)

    @property
    def verdict(self) -> str:
        """ "better", "worse", "same" (no change at all), "within the spread", or "" when nobody can tell."""
        if self.change is None:
            return ""
        if self.change == 0:
            return "same"
        if self.spread is None:
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
    nothing = Figure(None)
    known = dict.fromkeys([*names(), *before.figures])
    changes = [Change(name, before.figures.get(name, nothing), after.figures.get(name, nothing)) for name in known]
    return [change for change in changes if change.change is not None]


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
