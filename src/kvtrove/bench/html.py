"""The report: one HTML page that needs nothing else, no network and no script; light or dark as the system is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from kvtrove.bench.benchmark import Result, Run
from kvtrove.bench.measures import LATENCIES, RATES, STATISTICS
from kvtrove.bench.plots import run_charts, sweep_charts
from kvtrove.bench.results_file import settings_json
from kvtrove.bench.settings import seconds
from kvtrove.bench.summary import Summary
from kvtrove.bench.tables import SWEEP_TITLES, share, shown, sweep_row

STYLE = """
:root { --ink: #1d2327; --soft: #5b6770; --rule: #dde2e6; --paper: #ffffff; --card: #f6f8f9;
  --s1: #0b6bcb; --s2: #c2660a; --bad: #c62a2a; --good: #1a7f4b; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaed; --soft: #9aa6af; --rule: #353d44; --paper: #14181b;
  --card: #1c2226; --s1: #62aef5; --s2: #f0a04b; --bad: #ff7b72; --good: #5fcf95; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1200px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem; }
p { margin: .3rem 0; color: var(--soft); } p.note::before { content: "Note: "; font-weight: 600; }
.tiles, .charts { display: grid; gap: 1rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 1rem 0; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.tile, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin: 0;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.45rem; font-weight: 600; } .tile span { color: var(--soft); font-size: .85rem; }
figcaption { font-weight: 600; display: flex; justify-content: space-between; flex-wrap: wrap; }
.legend { font-weight: 400; font-size: .85rem; color: var(--soft); } .key { margin-left: .9rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em;
  background: currentColor; }
.key.s1::before { background: var(--s1); } .key.s2::before { background: var(--s2); }
.key.bad::before { background: var(--bad); }
svg { width: 100%; height: auto; display: block; margin-top: .4rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg text.marked { fill: var(--ink); }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 2; } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.dot { fill-opacity: .75; } .dot.s1, .bar.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.dot.bad { fill: var(--bad); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top; }
th:first-child, td:first-child, .words th, .words td { text-align: left; } th { color: var(--soft); font-weight: 500; }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { overflow: auto; background: var(--card); padding: 1rem; border-radius: 8px; } summary { cursor: pointer; }
"""


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
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _run(run: Run, result: Result) -> list[str]:
    summary, slo = run.summary, result.settings.slo
    counts = summary.counts
    ends = f"{counts.completed:,} completed, {counts.failed:,} failed, {counts.abandoned:,} abandoned"
    parts = [
        f"<h2>{escape(str(run.load))}</h2>",
        f"<p>{counts.sent:,} requests in {seconds(summary.seconds)}: {ends}</p>",
    ]
    parts.append(_tiles(summary, bool(slo)))
    parts.append(_charts(chart.svg() for chart in run_charts(run, slo)))
    rows = [
        [title, *(seconds(summary.value(f"{name}_{statistic}")) for statistic in STATISTICS)]
        for name, title in LATENCIES.items()
        if summary.value(f"{name}_mean") is not None
    ]
    parts.append(_table(["", *STATISTICS], rows))
    if summary.errors:
        parts.append("<h2>Errors</h2>")
        failures = [[row.status, f"{row.requests:,}", row.message] for row in summary.errors]
        parts.append(_table(["status", "requests", "first message"], failures, "words"))
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
        _charts(chart.svg() for chart in sweep_charts(result)),
        _table(SWEEP_TITLES, [sweep_row(run, slo) for run in result.runs]),
    ]


def _charts(drawn: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(drawn)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "figures") -> str:
    top = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
