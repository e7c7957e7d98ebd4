"""The report: one HTML page of a result."""

from __future__ import annotations

import json
from html import escape

from kvtrove.bench.benchmark import Result, Run
from kvtrove.bench.measures import LATENCIES, RATES, STATISTICS
from kvtrove.bench.plots import run_charts, sweep_charts
from kvtrove.bench.results_file import settings_json
from kvtrove.bench.settings import seconds
from kvtrove.bench.summary import Summary
from kvtrove.bench.tables import SWEEP_TITLES, share, shown, sweep_row
from kvtrove.report.page import charts, document, table


def page(result: Result) -> str:
    """The whole page. Text that came from the server is escaped."""
    target, model = result.settings.target, result.probe.model
    title = f"{model} at {target.url}"
    body = [f"<h1>{escape(title)}</h1>"]
    body.append(f"<p>kvtrove bench serve, {result.started:%Y-%m-%d %H:%M} UTC, {target.endpoint} endpoint</p>")
    if result.interrupted:
        body.append('<p class="note">stopped by hand; the figures are of what was measured until then</p>')
    body += [f'<p class="note">{escape(note)}</p>' for note in result.notes]
    if result.settings.rates:
        body += _sweep(result)
    for run in result.runs:
        body += _run(run, result)
    settings = json.dumps(settings_json(result), indent=2)
    body.append(f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>")
    return document(title, body)


def _run(run: Run, result: Result) -> list[str]:
    summary, slo = run.summary, result.settings.slo
    counts = summary.counts
    ends = f"{counts.completed:,} completed, {counts.failed:,} failed, {counts.abandoned:,} abandoned"
    parts = [
        f"<h2>{escape(str(run.load))}</h2>",
        f"<p>{counts.sent:,} requests in {seconds(summary.seconds)}: {ends}</p>",
    ]
    parts.append(_tiles(summary, bool(slo)))
    parts.append(charts(chart.svg() for chart in run_charts(run, slo)))
    rows = [
        [title, *(seconds(summary.value(f"{name}_{statistic}")) for statistic in STATISTICS)]
        for name, title in LATENCIES.items()
        if summary.value(f"{name}_mean") is not None
    ]
    parts.append(table(["", *STATISTICS], rows))
    if summary.errors:
        parts.append("<h2>Errors</h2>")
        failures = [[row.status, f"{row.requests:,}", row.message] for row in summary.errors]
        parts.append(table(["status", "requests", "first message"], failures, "words"))
    return parts


def _tiles(summary: Summary, judged: bool) -> str:
    names = {"request_rate": "requests", "output_rate": "tokens out", "input_rate": "tokens in"}
    tiles = [(shown(name, summary.value(name)), word) for name, word in names.items()]
    if judged:
        tiles = [(shown("goodput", summary.value("goodput")), RATES["goodput"]), *tiles]
        tiles.insert(1, (share(summary.value("slo_share")), "inside the SLO"))
        if summary.counts.sessions < summary.counts.sent:
            tiles.insert(2, (shown("session_goodput", summary.value("session_goodput")), "sessions inside the SLO"))
    tiles += [(seconds(summary.value("ttft_p50")), "TTFT p50"), (seconds(summary.value("ttft_p99")), "TTFT p99")]
    tiles.append((seconds(summary.value("tpot_p50")), "TPOT p50"))
    if summary.value("cached_share") is not None:
        tiles.append((share(summary.value("cached_share")), "prompt tokens from the cache"))
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(word)}</span></div>' for value, word in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _sweep(result: Result) -> list[str]:
    slo, best = result.settings.slo, result.sustained
    goal = escape(f"{100 * slo.share:g} % of the requests inside {slo}")
    verdict = "no rate that was tried" if best is None else f"{best.load.rate:g} arrivals/s is the highest rate that"
    return [
        "<h2>Highest rate inside the SLO</h2>",
        f'<p class="{"bad" if best is None else "good"}">{verdict} keeps {goal}</p>',
        charts(chart.svg() for chart in sweep_charts(result)),
        table(SWEEP_TITLES, [sweep_row(run, slo) for run in result.runs]),
    ]
