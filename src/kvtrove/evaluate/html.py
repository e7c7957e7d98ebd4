"""The report: one HTML page with what each cached byte is worth, and where facts are lost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from kvtrove.evaluate.evaluation import Evaluation
from kvtrove.evaluate.results import Row, remarks, rows
from kvtrove.evaluate.tables import columns, nats
from kvtrove.names import display_name
from kvtrove.report.heat import heat_map
from kvtrove.report.page import charts, document, table
from kvtrove.report.svg import Axis, Chart, Point

LEAST_KL = 1e-9  # nats; a smaller one is drawn as this


def page(evaluation: Evaluation) -> str:
    """The whole page. Text of the model and of settings is escaped."""
    settings, found = evaluation.settings, rows(evaluation)
    title = f"What each cached byte is worth: {display_name(settings.model)}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>kvtrove eval, {evaluation.done} of {evaluation.total} cells</p>"]
    body += [f'<p class="note">{escape(note)}</p>' for note in remarks(evaluation)]
    body.append(table(*columns(found)))
    if chart := pareto(found):
        body += ["<h2>Bytes of the cache against fidelity</h2>", f'<div class="single">{chart.svg()}</div>']
    if chart := lost_facts(found):
        body += ["<h2>Bytes of the cache against facts</h2>", f'<div class="single">{chart.svg()}</div>']
    if maps := [heat(row) for row in found if row.recall]:
        body += [
            "<h2>Recall of a stated fact</h2>",
            "<p>Share of dialogues whose answer holds the fact, by the length of the dialogue and by where the fact "
            "stands in it (0 %: first).</p>",
            charts(maps, "maps"),
        ]
    described = json.dumps(asdict(settings), indent=2)
    body.append(f"<details><summary>Settings</summary><pre>{escape(described)}</pre></details>")
    return document(title, body)


def heat(row: Row) -> str:
    lengths = sorted({length for length, _ in row.recall})
    depths = sorted({depth for _, depth in row.recall})
    shares = {(lengths.index(length), depths.index(depth)): value for (length, depth), value in row.recall.items()}
    rows_, columns = [f"{100 * depth:g} %" for depth in depths], [f"{length:,}" for length in lengths]
    return heat_map(row.name, columns, rows_, shares, ("tokens in the dialogue", "depth of the fact"))


def pareto(found: Sequence[Row]) -> Chart | None:
    """KL over bytes per token, lower left is better. The line joins what nothing else beats in both.

    Other weights are left out: what they save is not in the cache.
    """
    caches = [row for row in found if row.weight_bytes == found[0].weight_bytes]
    points = [(row.bytes_per_token, row.fidelity.kl_mean, row.name) for row in caches if row.fidelity is not None]
    if not points:
        return None
    positive = [max(kl, LEAST_KL) for _, kl, _ in points if kl > 0] or [LEAST_KL]
    zero = 10.0 ** (math.floor(math.log10(min(positive))) - 1)  # a logarithm has no place for it: a decade below
    size = [nbytes for nbytes, _, _ in points]
    x = Axis("bytes per token", min(size) / 1.4, max(size) * 2, "{:,.0f}".format, log=True)
    y = Axis("mean KL, nats", zero, max(positive) * 3, lambda kl: "0" if kl < 2 * zero else f"{kl:g}", log=True)
    chart = Chart("Mean KL against the exact cache over the bytes that a token takes", x, y)
    chart.line(front([(nbytes, max(kl, zero)) for nbytes, kl, _ in points]), "s2 front")
    for place, names in _named(points, zero).items():
        chart.dots([place], "s1", radius=4)
        chart.label(place, ", ".join(names))
    return chart


def lost_facts(found: Sequence[Row]) -> Chart | None:
    """Facts that are not found over bytes per token, lower left is better; what nothing else beats has its name."""
    caches = [row for row in found if row.weight_bytes == found[0].weight_bytes]
    points = [(row.bytes_per_token, row.lost, row.name) for row in caches if row.lost is not None]
    if not points:
        return None
    size = [nbytes for nbytes, _, _ in points]
    x = Axis("bytes per token", min(size) / 1.4, max(size) * 2, "{:,.0f}".format, log=True)
    y = Axis("facts that are not found", 0.0, max(0.1, *(lost for _, lost, _ in points)) * 1.1, "{:.0%}".format)
    chart = Chart("Facts that are not found over the bytes that a token takes", x, y)
    best = front([(nbytes, lost) for nbytes, lost, _ in points])
    chart.line(best, "s2 front")
    for place in dict.fromkeys((nbytes, lost) for nbytes, lost, _ in points):
        chart.dots([place], "s1", radius=4)
        if place in best:
            chart.label(place, ", ".join(name for *other, name in points if tuple(other) == place))
    return chart


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both values, by the first."""
    kept: list[Point] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _named(points: Sequence[tuple[float, float, str]], zero: float) -> dict[Point, list[str]]:
    """Names by place; equal places share one label."""
    places: dict[Point, list[str]] = {}
    for nbytes, kl, name in points:
        places.setdefault((nbytes, max(kl, zero)), []).append(name if kl == 0 else f"{name} ({nats(kl)})")
    return places
