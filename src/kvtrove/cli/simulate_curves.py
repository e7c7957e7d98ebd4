"""Curves of a simulation over the size of the cache: a page that needs nothing else, or a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError
from kvtrove.report.page import charts, document, table
from kvtrove.report.svg import Axis, Chart, Point

Run = dict[str, Any]
"""One entry of the JSON report: `SimulationResult.as_json`."""
TABLE = ("kv_tokens", "token_hit_ratio", "throughput", "goodput", "preemptions", "rejected")
STYLES = ("s1", "s2", "bad")  # classes of the page


@dataclass(frozen=True)
class Curve:
    """value: of a run, None where it has none."""

    name: str
    value: Callable[[Run], float | None]


@dataclass(frozen=True)
class Plot:
    title: str
    unit: str
    curves: tuple[Curve, ...]


def _percentile(kind: str, p: str, scale: float) -> Curve:
    return Curve(p, lambda run: run[kind][p] * scale if run[kind] else None)


PLOTS = (
    Plot("Prompt tokens served from the cache", "%", (Curve("", lambda run: 100 * run["token_hit_ratio"]),)),
    Plot("Time to first token", "s", tuple(_percentile("ttft", p, 1.0) for p in ("p50", "p90", "p99"))),
    Plot("Time per output token", "ms", tuple(_percentile("tpot", p, 1e3) for p in ("p50", "p90", "p99"))),
    Plot("Requests within the limits", "per second", (Curve("", lambda run: run["goodput"]),)),
)


def points(curve: Curve, runs: Sequence[Run]) -> list[Point]:
    """(KV tokens, value), ascending. A cache without limit has no place on the axis."""
    found = ((run["kv_tokens"], curve.value(run)) for run in runs)
    return sorted((float(x), y) for x, y in found if x is not None and y is not None)


def html_page(title: str, runs: Sequence[Run]) -> str:
    figures = [chart.svg() for plot in PLOTS if (chart := _chart(plot, runs))]
    head = [name.replace("_", " ") for name in TABLE]
    rows = [[_shown(run[name]) for name in TABLE] for run in runs]
    return document(title, [f"<h1>{escape(title)}</h1><p>kvtrove simulate</p>", charts(figures), table(head, rows)])


def write_png(path: Path, title: str, runs: Sequence[Run]) -> None:
    """ConfigError when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("png: matplotlib is not installed; pip install matplotlib, or use --html") from None
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    for number, plot in enumerate(PLOTS, 1):
        axes = figure.add_subplot(2, 2, number)
        for curve in plot.curves:
            line = points(curve, runs)
            axes.plot([x for x, _ in line], [y for _, y in line], marker="o", label=curve.name or plot.unit)
        axes.set(title=f"{plot.title} ({plot.unit})", xlabel="KV tokens", xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path)


def _chart(plot: Plot, runs: Sequence[Run]) -> Chart | None:
    """None when no run has a value."""
    lines = {curve.name: points(curve, runs) for curve in plot.curves}
    everything = [point for line in lines.values() for point in line]
    if not everything:
        return None
    sizes, values = zip(*everything, strict=True)
    x = Axis("KV tokens", min(sizes), max(sizes), _tokens, log=True)
    chart = Chart(plot.title, x, Axis(plot.unit, 0.0, max(values), "{:.4g}".format))
    for style, (name, line) in zip(STYLES, lines.items(), strict=False):
        chart.line(line, style)
        chart.dots(line, style, name)
    return chart


def _tokens(count: float) -> str:
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _shown(value: float | None) -> str:
    return "unlimited" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
