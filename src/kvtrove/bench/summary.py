"""The figures of one run, each with its standard error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtrove.bench.measures import Counts, ErrorRow, Figures, TurnRow, by_turn, count, errors, figures, span
from kvtrove.bench.record import Record
from kvtrove.bench.settings import Slo

GROUPS = 20
LEAST_RECORDS = 2 * GROUPS  # with fewer, a standard error would say more about luck than about the server


@dataclass(frozen=True)
class Figure:
    """value: None where nothing was measured. error: standard error; None where there are too few requests to tell."""

    value: float | None
    error: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a run has shown without its warm-up. seconds: first arrival to last end. token_sources: see stream.py."""

    seconds: float
    counts: Counts
    figures: dict[str, Figure]
    turns: list[TurnRow]
    errors: list[ErrorRow]
    token_sources: dict[str, int]

    def value(self, name: str) -> float | None:
        return self.figures[name].value if name in self.figures else None


def summarise(records: Sequence[Record], slo: Slo) -> Summary:
    measured = sorted((record for record in records if not record.warmup), key=lambda record: record.arrival)
    seconds = span(measured)
    values = figures(measured, slo, seconds)
    spread = standard_errors(measured, slo, seconds)
    return Summary(
        seconds=seconds,
        counts=count(measured, slo),
        figures={name: Figure(value, spread.get(name)) for name, value in values.items()},
        turns=by_turn(measured),
        errors=errors(measured),
        token_sources=dict(Counter(record.token_source for record in measured if record.ok)),
    )


def standard_errors(records: Sequence[Record], slo: Slo, seconds: float, groups: int = GROUPS) -> Figures:
    """Delete-a-group jackknife over the run's stretches of time (Shao and Wu 1989; also right for percentiles).

    Requests that run together slow each other down, so they are left out together: m_g is a measure with stretch g
    of `groups` equal ones deleted, and its standard error is sqrt((groups - 1) / groups * sum((m_g - mean m)^2)).
    Conversations stay whole: a request belongs to the stretch in which its conversation began. A maximum has none.
    """
    if len(records) < LEAST_RECORDS:
        return {}
    began: dict[int, float] = {}
    for record in records:
        began[record.conversation] = min(record.arrival, began.get(record.conversation, record.arrival))
    first, last = min(began.values()), max(began.values())
    stretch = (last - first) / groups or 1.0
    place = [min(groups - 1, int((began[record.conversation] - first) / stretch)) for record in records]
    rest = seconds * (groups - 1) / groups
    left = [
        figures([record for record, at in zip(records, place, strict=True) if at != group], slo, rest)
        for group in range(groups)
    ]
    return {name: _jackknife([without[name] for without in left]) for name in left[0] if not name.endswith("_max")}


def _jackknife(values: Sequence[float | None]) -> float | None:
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return None
    return float(np.sqrt((len(known) - 1) / len(known) * np.sum((known - known.mean()) ** 2)))
