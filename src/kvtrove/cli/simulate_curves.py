"""Curves of a simulation over the size of the cache: a page that needs nothing else, or a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kvtrove.cli.simulate_view import cells, facts, notes, titles
from kvtrove.config import ConfigError
from kvtrove.report.page import charts, document, table
from kvtrove.report.svg import Axis, Chart, Point

Run = dict[str, Any]
"""One entry of the JSON report: `SimulationResult.as_json`."""
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


def _share(name: str, key: str) -> Curve:
    return Curve(name, lambda run: 100 * run[key])


def _percentile(kind: str, p: str, scale: float) -> Curve:
    return Curve(p, lambda run: run[kind][p] * scale if run[kind] else None)


def _plots(report: dict[str, Any]) -> Iterator[Plot]:
    """Without limits every request that is served is within them; steps that take no time have no latencies."""
    hits = (("this cache", "token_hit_ratio"), ("unlimited", "ideal_hit_ratio"))
    yield Plot("Prompt tokens served from the cache", "%", tuple(_share(*hit) for hit in hits))
    if any(run["ttft"] and run["ttft"]["p99"] for run in report["runs"]):
        yield Plot("Time to first token", "s", tuple(_percentile("ttft", p, 1.0) for p in ("p50", "p90", "p99")))
        yield Plot("Time per output token", "ms", tuple(_percentile("tpot", p, 1e3) for p in ("p50", "p90", "p99")))
    served = "Requests within the limits" if report["slo"] else "Requests served"
    yield Plot(served, "per second", (Curve("", lambda run: run["goodput"]),))


def points(curve: Curve, runs: Sequence[Run]) -> list[Point]:
    """(KV tokens, value), ascending. A cache without limit has no place on the axis."""
    found = ((run["kv_tokens"], curve.value(run)) for run in runs)
    return sorted((float(x), y) for x, y in found if x is not None and y is not None)


def html_page(report: dict[str, Any]) -> str:
    """report: of `simulation_report`."""
    runs = report["runs"]
    figures = [chart.svg() for plot in _plots(report) if (chart := _chart(plot, runs))]
    title = f"{report['trace']}: what each size of the cache is worth"
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(fact)}</p>" for fact in facts(report))]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes(report)]
    head = [*titles(report), "preempted", "refused"]
    rows = [[*cells(run), f"{run['preempted_requests']:,}", f"{run['rejected']:,}"] for run in runs]
    return document(title, [*body, charts(figures), table(head, rows)])


def write_png(path: Path, report: dict[str, Any]) -> None:
    """ConfigError when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("png: matplotlib is not installed; pip install matplotlib, or use --html") from None
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    figure.suptitle("\n".join([f"{report['trace']}: {facts(report)[0]}", *facts(report)[1:]]), fontsize=10)
    for number, plot in enumerate(_plots(report), 1):
        axes = figure.add_subplot(2, 2, number)
        for curve in plot.curves:
            line = points(curve, report["runs"])
            axes.plot([x for x, _ in line], [y for _, y in line], marker="o", label=curve.name or plot.unit)
        axes.set(title=f"{plot.title} ({plot.unit})", xlabel="KV tokens")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
        axes.set_ylim(bottom=0)
        if len(plot.curves) > 1:
            axes.legend()
    figure.savefig(path)


def _chart(plot: Plot, runs: Sequence[Run]) -> Chart | None:
    """None when no run has a value."""
    lines = {curve.name: points(curve, runs) for curve in plot.curves}
    everything = [point for line in lines.values() for point in line]
    if not everything:
        return None
    sizes, values = zip(*everything, strict=True)
    x = Axis("KV tokens", min(sizes), max(sizes), _tokens, log=True, binary=True)
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
