"""A result and a comparison as text for people: rich tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtrove.bench.benchmark import Result, Run, meets
from kvtrove.bench.compare import Change, Pairs, compare, differences, pairs
from kvtrove.bench.measures import LATENCIES, RATES, SHARES, STATISTICS
from kvtrove.bench.results_file import Side
from kvtrove.bench.settings import Slo, number, seconds
from kvtrove.bench.summary import Summary
from kvtrove.config import ConfigError
from kvtrove.report.table import FittingTable

SWEEP_TITLES = ("rate", "inside the SLO", "TTFT p90", "TPOT p90", "goodput", "goal")


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def shown(name: str, value: float | None) -> str:
    """A measure's value with its unit."""
    if value is None:
        return "-"
    if name in SHARES:
        return share(value)
    if name not in RATES and name.rpartition("_")[0] not in LATENCIES:  # an engine's measure says its unit itself
        return number(value)
    return f"{number(value)}/s" if name in RATES else seconds(value)


def label(name: str) -> str:
    """``"ttft_p50" -> "TTFT p50"``."""
    known = RATES | SHARES
    if name in known:
        return known[name]
    latency, _, statistic = name.rpartition("_")
    return f"{LATENCIES[latency]} {statistic}" if latency in LATENCIES else name


def result_table(result: Result) -> RenderableType:
    """All that `bench serve` prints."""
    target, model = result.settings.target, result.probe.model
    parts: list[RenderableType] = [Text(f"{model} at {target.url}, {target.endpoint}", style="bold")]
    for run in result.runs:
        parts += [Text(), *_run(run, result)]
    if result.settings.rates:
        parts += [Text(), *_sweep(result)]
    if result.interrupted:
        parts.append(Text("stopped by hand: figures are of what was measured until then", style="yellow"))
    parts += [Text(f"note: {note}", style="yellow") for note in result.notes]
    return Group(*parts)


def _run(run: Run, result: Result) -> Iterator[RenderableType]:
    summary, counts = run.summary, run.summary.counts
    left_out = sum(record.warmup for record in run.records)
    ends = [("completed", counts.completed), ("failed", counts.failed), ("abandoned", counts.abandoned)]
    ends += [("unfinished", counts.unfinished)] if counts.unfinished else []
    told = ", ".join(f"{number:,} {word}" for word, number in ends)
    yield Text(f"{run.load}, seed {run.load.seed}")
    warm = f"; {left_out:,} more for warm-up, not measured" if left_out else ""
    yield Text(f"{counts.sent:,} requests in {seconds(summary.seconds)}: {told}{warm}")
    yield _latency_table(summary)
    throughput = [name for name in ("request_rate", "output_rate", "input_rate") if summary.value(name) is not None]
    if throughput:
        yield _line("throughput", [_rate(summary, name, RATES[name]) for name in throughput])
    if result.settings.slo:
        yield from _goodput(summary, result)
    if summary.value("cached_share") is not None:
        yield from _cache(summary)
    if summary.errors:
        yield _error_table(summary)


def _line(title: str, parts: list[str]) -> Text:
    return Text.assemble((f"{title:<12}", "bold"), ", ".join(parts))


def _latency_table(summary: Summary) -> Table:
    table = FittingTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for statistic in STATISTICS:
        table.add_column(statistic, justify="right")
    for name, title in LATENCIES.items():
        if summary.value(f"{name}_mean") is not None:
            table.add_row(title, *(seconds(summary.value(f"{name}_{statistic}")) for statistic in STATISTICS))
    return table


def _goodput(summary: Summary, result: Result) -> Iterator[Text]:
    counts, figure = summary.counts, summary.figures["slo_share"]
    spread = "" if figure.error is None else f" ± {100 * 1.96 * figure.error:.1f}"
    inside = share(figure.value).replace(" %", f"{spread} %")
    parts = [_rate(summary, "goodput", "requests"), f"{inside} inside {result.settings.slo}", f"{counts.late:,} late"]
    yield _line("goodput", [*parts, f"{counts.abandoned:,} abandoned"])
    if any(row.turn > 1 for row in summary.turns) or counts.sessions < counts.sent:
        whole = share(summary.value("session_slo_share"))
        rate = _rate(summary, "session_goodput", "sessions")
        yield _line("sessions", [f"{rate} with every turn inside the SLO", f"{whole} of those that ended"])


def _rate(summary: Summary, name: str, noun: str) -> str:
    """``3.92 requests/s``."""
    return f"{number(summary.value(name) or 0.0)} {noun}/s"


def _cache(summary: Summary) -> Iterator[Text]:
    yield _line("cache", [f"{share(summary.value('cached_share'))} of the prompt tokens were cached"])
    turns = [row for row in summary.turns if row.cached_share is not None]
    if len(turns) > 1:
        yield _line("  by turn", [f"{row.turn}: {share(row.cached_share)}" for row in turns[:12]])


def _error_table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="errors", title_justify="left")
    table.add_column("status", style="red")
    table.add_column("requests", justify="right")
    table.add_column("first message")
    for row in summary.errors:
        table.add_row(row.status, f"{row.requests:,}", Text(row.message))
    return table


def sweep_row(run: Run, slo: Slo) -> list[str]:
    """Under SWEEP_TITLES."""
    figures = [shown(name, run.summary.value(name)) for name in ("slo_share", "ttft_p90", "tpot_p90", "goodput")]
    return [f"{run.load.rate:g}/s", *figures, "meets it" if meets(run, slo) else "misses it"]


def _sweep(result: Result) -> Iterator[RenderableType]:
    slo, best = result.settings.slo, result.sustained
    table = FittingTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in SWEEP_TITLES:
        table.add_column(title, justify="right")
    for run in result.runs:
        table.add_row(*sweep_row(run, slo), style="" if meets(run, slo) else "red")
    yield table
    goal = f"{100 * slo.share:g} % of the requests inside {slo}"
    if best is None:
        yield Text(f"no rate that was tried keeps {goal}", style="bold red")
        return
    yield Text(f"{best.load.rate:g} arrivals/s is the highest rate that keeps {goal}", style="bold green")
    if best is result.runs[-1] and not result.interrupted:
        yield Text("every rate met the goal: try higher ones to find the limit")


def comparison_table(before: Side, after: Side) -> RenderableType:
    """All that `bench compare` prints. ConfigError when no runs belong together."""
    if len(before.results) != len(after.results):
        counts = f"{len(before.results)} and {len(after.results)}"
        raise ConfigError(f"{before.path} and {after.path} hold {counts} results; as many of each make pairs")
    matched = pairs(before, after)
    if not matched:
        raise ConfigError(
            f"{before.path} and {after.path} have nothing in common: {_rates(before)} and {_rates(after)}; "
            "run the same command for both, with the same --rate or --rates"
        )
    parts: list[RenderableType] = []
    for name, old, new in differences(before, after):
        parts.append(Text(f"not the same: {name} was {old}, is {new}", style="yellow"))
    names = [before.path, after.path]
    if Path(before.path).name != Path(after.path).name:
        names = [Path(path).name for path in names]
    for both in matched:
        table = FittingTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
        table.title = both.after[0].load
        for title in ("", *names, "change", "spread", ""):
            table.add_column(title, justify="right" if title else "left", overflow="fold")
        changes = compare(both)
        for change in changes:
            table.add_row(*_change(change))
        parts.append(table)
        if not any(change.verdict in ("better", "worse") for change in changes):
            parts.append(Text("no difference beyond chance", style="bold"))
    parts.append(Text(_reliance(matched[0]), style="dim"))
    return Group(*parts)


def _reliance(both: Pairs) -> str:
    """What the spread knows, and what it takes to know more."""
    count = len(both.before)
    if both.enough:
        return (
            f"spread: what chance may do, by {count} pairs of runs in turn; 95 of 100 comparisons of equal sides stay "
            "within it"
        )
    many = f"{count} runs" if count > 1 else "one run"
    told = f"{many} of each side that did not take turns" if not both.took_turns else f"{many} of each side"
    return (
        f"spread: what chance may do within a run. {told[0].upper()}{told[1:]} cannot show what differs between runs: "
        "what is beyond the spread is unsure. `kvtrove bench alternate` runs both in turn, and then tells"
    )


def _rates(side: Side) -> str:
    return ", ".join(run.load for run in side.results[0].runs)


def _change(change: Change) -> list[str | Text]:
    before, after = shown(change.name, change.before), shown(change.name, change.after)
    colour = {"better": "green", "worse": "red", "unsure": "yellow"}.get(change.verdict, "")
    return [label(change.name), before, after, *_relative(change), Text(change.verdict, style=colour)]


def _relative(change: Change) -> tuple[str, str]:
    """(change, spread) in percent of the old value; of shares, in points."""
    whole = 1.0 if change.name in SHARES else change.before
    unit = " points" if change.name in SHARES else " %"
    if not whole:
        return "-", "-"
    spread = "-" if change.spread is None else f"± {100 * change.spread / whole:.1f}{unit}"
    return f"{100 * change.change / whole:+.1f}{unit}", spread
