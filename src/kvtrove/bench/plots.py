"""Which charts a result has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtrove.bench.benchmark import Result, Run
from kvtrove.bench.measures import within
from kvtrove.bench.record import Floats, Record
from kvtrove.bench.settings import Slo, seconds
from kvtrove.report.svg import Axis, Chart, Point

MOST_DOTS = 2000  # more would only make the page slow
_CURVE = np.linspace(0, 100, 201)


def run_charts(run: Run, slo: Slo) -> list[Chart]:
    """Of one run: distributions, the course of time, the cache by turn. What was not measured has no chart."""
    measured = sorted((record for record in run.records if not record.warmup), key=lambda record: record.arrival)
    ok = [record for record in measured if record.ok]
    if not ok:
        return []
    charts = [_distribution("Time to first token", [("", "s1", _values(ok, "ttft"))], slo.ttft, "TTFT")]
    tokens = [
        ("TPOT, per request", "s1", _values(ok, "tpot")),
        ("ITL, per token", "s2", np.concatenate([r.gaps for r in ok])),
    ]
    tokens = [series for series in tokens if len(series[2])]
    if tokens:
        charts.append(_distribution("Time per output token", tokens, slo.tpot, "TPOT"))
    charts += [_course(measured, slo), _running(measured)]
    turns = [(float(row.turn), row.cached_share) for row in run.summary.turns if row.cached_share is not None]
    if len(turns) > 1:
        charts.append(_cache_by_turn(turns))
    return charts


def sweep_charts(result: Result) -> list[Chart]:
    """Over the rates: the share inside the SLO, and the latencies."""
    runs = [run for run in result.runs if run.load.rate is not None]
    if len(runs) < 2:
        return []
    rates = Axis("arrivals per second", 0, max(run.load.rate or 0.0 for run in runs))
    share = Chart("Share of requests inside the SLO", rates, Axis("share", 0, 1, _percent))
    share.mark_y(result.settings.slo.share, f"goal {_percent(result.settings.slo.share)}")
    _over_rates(share, runs, "slo_share", "s1", "")
    values = [v for run in runs for name in ("ttft_p50", "ttft_p90") if (v := run.summary.value(name)) is not None]
    charts = [share]
    if values:
        latency = Chart(
            "Time to first token", rates, _log_axis("TTFT", _and(np.array(values), result.settings.slo.ttft))
        )
        _over_rates(latency, runs, "ttft_p50", "s2", "p50")
        _over_rates(latency, runs, "ttft_p90", "s1", "p90")
        if result.settings.slo.ttft is not None:
            latency.mark_y(result.settings.slo.ttft, "SLO")
        charts.append(latency)
    return charts


def _over_rates(chart: Chart, runs: Sequence[Run], name: str, style: str, legend: str) -> None:
    points = [(run.load.rate or 0.0, value) for run in runs if (value := run.summary.value(name)) is not None]
    chart.line(points, style, legend)
    chart.dots(points, style, radius=4)


def _distribution(title: str, series: Sequence[tuple[str, str, Floats]], limit: float | None, what: str) -> Chart:
    """Cumulative: which share of the requests (tokens) took at most x."""
    every = _and(np.concatenate([values for _, _, values in series]), limit)
    chart = Chart(
        title, _log_axis(what if len(series) == 1 else "seconds per token", every), Axis("share", 0, 1, _percent)
    )
    if limit is not None:
        chart.mark_x(limit, f"SLO {seconds(limit)}")
    for name, style, values in series:
        quantiles = np.percentile(values, _CURVE)
        chart.line([(float(x), float(share) / 100) for x, share in zip(quantiles, _CURVE, strict=True)], style, name)
    return chart


def _course(records: Sequence[Record], slo: Slo) -> Chart:
    """TTFT of each request over the time of its arrival; what failed stands at the bottom."""
    every = _and(_values(records, "ttft"), slo.ttft)
    low = float(every[every > 0].min(initial=1.0))
    inside = [r for r in records if within(r, slo)]
    late = [r for r in records if r.ok and not within(r, slo)]
    failed = [(r.arrival, low) for r in records if not r.ok]
    chart = Chart("Time to first token over the run", _time_axis(records), _log_axis("TTFT", every))
    if slo.ttft is not None:
        chart.mark_y(slo.ttft, "SLO")
    named = [
        ("inside the SLO" if slo else "", "s1", _dots(inside)),
        ("late", "s2", _dots(late)),
        ("failed", "bad", failed),
    ]
    for name, style, points in named:
        if points:
            chart.dots(points[:: max(1, len(points) // MOST_DOTS)], style, name)
    return chart


def _running(records: Sequence[Record]) -> Chart:
    """Requests under way over time."""
    changes = sorted([(r.sent, 1) for r in records] + [(r.ended, -1) for r in records])
    points: list[Point] = []
    running = 0
    for time, change in changes:
        running += change
        points.append((time, float(running)))
    high = max(count for _, count in points)
    chart = Chart("Requests under way", _time_axis(records), Axis("requests", 0, max(high, 4), whole=True))
    chart.steps(points[:: max(1, len(points) // MOST_DOTS)], "s1")
    return chart


def _cache_by_turn(turns: Sequence[Point]) -> Chart:
    last = turns[-1][0]
    axis = Axis("turn", 0.5, last + 0.5, whole=True)
    chart = Chart("Prompt tokens from the cache", axis, Axis("share", 0, 1, _percent))
    chart.bars(turns, "s1")
    return chart


def _time_axis(records: Sequence[Record]) -> Axis:
    return Axis("seconds into the run", min(r.arrival for r in records), max(r.ended for r in records))


def _log_axis(label: str, values: Floats) -> Axis:
    """From a little below the smallest value above zero to a little above the largest, at least a factor of four."""
    above = values[values > 0]
    low, high = (float(above.min()), float(above.max())) if len(above) else (0.001, 1.0)
    widen = max(1.15, (4 * low / high) ** 0.5)
    return Axis(label, low / widen, high * widen, seconds, log=True)


def _and(values: Floats, limit: float | None) -> Floats:
    """The values of an axis on which the limit is marked."""
    return values if limit is None else np.append(values, limit)


def _values(records: Sequence[Record], name: str) -> Floats:
    return np.array([value for record in records if (value := getattr(record, name)) is not None])


def _dots(records: Sequence[Record]) -> list[Point]:
    return [(record.arrival, ttft) for record in records if (ttft := record.ttft) is not None]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
