"""Two sides of results: how much each measure changed, and whether that is more than chance.

Runs of both sides that took turns show how far equal runs lie apart, so they are judged by that. A run alone shows what
chance does to its requests and nothing of what changes between runs, so nothing that it shows is sure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from kvtrove.bench.chance import ENOUGH, in_turn, of_requests, of_turns
from kvtrove.bench.measures import LATENCIES, RATES, SHARES, STATISTICS
from kvtrove.bench.results_file import Side, StoredRun
from kvtrove.bench.summary import GROUPS, Figure

_HIGH = {"_p90": 0.1, "_p95": 0.05, "_p99": 0.01}  # share of the requests beyond
_OF_THE_CLIENT = "lag_"  # how late the client was is no property of the server
_SAY_NOTHING = ("load.seed", "target.url", "target.timeout")  # settings that may differ between equal tests
_LOWER_IS_BETTER = tuple(f"{name}_" for name in LATENCIES)
_TIMES = ("_ms", ".ms", "wall_s")  # how measures of an engine end that should fall


@dataclass(frozen=True)
class Change:
    """One measure. before, after: means of the runs. spread: what chance may do to after - before; None: not known.

    sure: whether a change beyond the spread says something of the sides, not of the hours in which they ran.
    """

    name: str
    before: float
    after: float
    spread: float | None
    sure: bool = True

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """ "better", "worse", "same" (no change at all), "within the spread", "unsure", or "" when nobody can tell."""
        if self.change == 0:
            return "same"
        if self.spread is None:
            return ""
        if abs(self.change) <= self.spread:
            return "within the spread"
        if not self.sure:
            return "unsure"
        should_fall = self.name.startswith(_LOWER_IS_BETTER) or self.name.endswith(_TIMES)
        return "better" if (self.change < 0) == should_fall else "worse"


def names() -> Iterator[str]:
    """Every measure, in the order in which people read them."""
    for latency in LATENCIES:
        yield from (f"{latency}_{statistic}" for statistic in STATISTICS)
    yield from RATES
    yield from SHARES


@dataclass(frozen=True)
class Pairs:
    """Runs of the same load, the i-th of one side beside the i-th of the other. took_turns: see `in_turn`."""

    before: Sequence[StoredRun]
    after: Sequence[StoredRun]
    took_turns: bool = True

    @property
    def enough(self) -> bool:
        """Whether the runs themselves show what chance does to them."""
        return self.took_turns and len(self.before) >= ENOUGH


def compare(pairs: Pairs) -> list[Change]:
    """Every measure that all runs have: a server's in the order of `names`, an engine's in that of the file."""
    runs = [*pairs.before, *pairs.after]
    known = dict.fromkeys([*names(), *runs[0].figures])
    shared = [name for name in known if all(run.figures.get(name, Figure(None)).value is not None for run in runs)]
    return _by_turns(pairs, shared) if pairs.enough else _by_requests(pairs, shared)


def _by_turns(pairs: Pairs, shared: Sequence[str]) -> list[Change]:
    """Ratios of pairs (differences where a value is 0, and of shares), beside those of every way to swap the sides."""
    found, judged = {}, [name for name in shared if not name.startswith(_OF_THE_CLIENT)]
    for name in shared:
        before, after = _values(pairs.before, name), _values(pairs.after, name)
        scaled = name not in SHARES and min(*before, *after) > 0
        found[name] = (np.log(before), np.log(after), scaled) if scaled else (before, after, scaled)
    differences = np.stack([found[name][1] - found[name][0] for name in judged], axis=1) if judged else np.empty((1, 0))
    spreads = dict(zip(judged, of_turns(differences).tolist(), strict=True))
    return [_between(name, *found[name], spreads.get(name)) for name in shared]


def _between(name: str, before: Any, after: Any, scaled: bool, spread: float | None) -> Change:
    """Values from means and a spread on the scale of the comparison: where that is a logarithm, a factor up or down."""
    one, other = float(before.mean()), float(after.mean())
    spread = None if spread is None or not math.isfinite(spread) else spread
    if not scaled:
        return Change(name, one, other, spread)
    up = 1.0 if other >= one else -1.0
    wide = None if spread is None else math.exp(one) * abs(math.expm1(up * spread))
    return Change(name, math.exp(one), math.exp(other), wide)


def _by_requests(pairs: Pairs, shared: Sequence[str]) -> list[Change]:
    """The jackknife of each run, which knows nothing of what changes between runs: nothing is sure."""
    runs = [*pairs.before, *pairs.after]
    errors = {name: [_error(name, run) for run in runs] for name in shared if not name.startswith(_OF_THE_CLIENT)}
    known = {name: [error for error in found if error is not None] for name, found in errors.items()}
    judged = {name: math.hypot(*found) / len(pairs.before) for name, found in known.items() if len(found) == len(runs)}
    critical = of_requests(max(1, len(judged)))
    changes = []
    for name in shared:
        before, after = _values(pairs.before, name), _values(pairs.after, name)
        spread = critical * judged[name] if name in judged else None
        changes.append(Change(name, float(before.mean()), float(after.mean()), spread, sure=False))
    return changes


def _values(runs: Sequence[StoredRun], name: str) -> Any:
    return np.array([run.figures[name].value for run in runs])


def _error(name: str, run: StoredRun) -> float | None:
    """Of a measure; none of a high percentile where a stretch has less than one request beyond it.

    Whichever stretch is left out, the same few requests then make the percentile, and the jackknife sees no spread.
    """
    beyond = next((share for ending, share in _HIGH.items() if name.endswith(ending)), None)
    return run.figures[name].error if beyond is None or beyond * run.completed >= GROUPS else None


def pairs(before: Side, after: Side) -> list[Pairs]:
    """Runs of the same command that belong together: the only ones, or those of the same rate, in order."""
    results = [*before.results, *after.results]
    if len(before.results) != len(after.results) or len({stored.kind for stored in results}) > 1:
        return []
    turns = in_turn([stored.started for stored in before.results], [stored.started for stored in after.results])
    alone = all(len(stored.runs) == 1 for stored in results)
    by_rate = [{None if alone else run.rate: run for run in stored.runs} for stored in results]
    half = len(before.results)
    return [
        Pairs([runs[rate] for runs in by_rate[:half]], [runs[rate] for runs in by_rate[half:]], turns)
        for rate in by_rate[0]
        if all(rate in runs for runs in by_rate)
    ]


def differences(before: Side, after: Side) -> list[tuple[str, Any, Any]]:
    """Settings that were not the same: (name, before, after). What differs here may explain what differs there.

    Within a side, too: several values stand side by side.
    """
    sides = before.results, after.results
    known = dict.fromkeys(chain.from_iterable(stored.settings for stored in chain(*sides)))
    found = []
    for name in known:
        old, new = ([stored.settings.get(name) for stored in side] for side in sides)
        if name not in _SAY_NOTHING and any(value != old[0] for value in chain(old, new)):
            found.append((name, _alone(old), _alone(new)))
    return found


def _alone(values: Sequence[Any]) -> Any:
    different = [value for at, value in enumerate(values) if value not in values[:at]]
    return different[0] if len(different) == 1 else " and ".join(map(str, different))
