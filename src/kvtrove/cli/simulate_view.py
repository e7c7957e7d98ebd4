"""A simulation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvtrove.cli.output import console
from kvtrove.plan.units import show_seconds
from kvtrove.report.table import FittingTable


def titles(report: dict[str, Any]) -> list[str]:
    """Of the columns of `cells`. Without limits every request that is served counts."""
    served = "goodput" if report["slo"] else "served"
    return ["KV tokens", "hit", "ideal", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", served]


def cells(run: dict[str, Any]) -> list[str]:
    times = [_time(run[kind], p) for kind in ("ttft", "tpot") for p in ("p50", "p99")]
    ratios = [f"{100 * run[name]:.1f} %" for name in ("token_hit_ratio", "ideal_hit_ratio")]
    return [_size(run), *ratios, *times, f"{run['goodput']:.3g}/s"]


def facts(report: dict[str, Any]) -> list[str]:
    """Sentences on the load and on what was assumed."""
    limits = " and ".join(f"{name.upper()} within {show_seconds(limit)}" for name, limit in report["slo"].items())
    load = f"{report['mean_prompt']:,.0f} + {report['mean_output']:,.0f} tokens on average"
    return [
        f"{report['num_requests']:,} requests, {load}, {report['rate']:.3g} per second",
        f"assumed: {report['assumed']}",
        *([f"goodput: requests with {limits}"] if limits else []),
    ]


def notes(report: dict[str, Any]) -> Iterator[str]:
    """What is worth saying of single sizes."""
    for cliff in report["cliffs"]:
        user = " per user" if report["num_users"] > 1 else ""
        yield (
            f"cliff: {cliff['from_tokens_per_user']:,} to {cliff['to_tokens_per_user']:,} KV tokens{user} raise the "
            f"hit ratio from {100 * cliff['from_hit_ratio']:.1f} to {100 * cliff['to_hit_ratio']:.1f} %"
        )
    for run in report["runs"]:
        yield from (f"{_size(run)} KV tokens: {note}" for note in _notes(run, report["rate"]))


def show_simulation(report: dict[str, Any]) -> None:
    out = console()
    first, *more = facts(report)
    out.print(f"[bold]{report['trace']}[/bold]  {first}")
    for fact in more:
        out.print(fact, soft_wrap=True)
    table = FittingTable()
    for name in titles(report):
        table.add_column(name, justify="right", no_wrap=True)
    for run in report["runs"]:
        table.add_row(*cells(run))
    out.print(table)
    for note in notes(report):
        out.print(note, soft_wrap=True)


def _notes(run: dict[str, Any], rate: float) -> Iterator[str]:
    if run["rejected"]:
        yield f"{run['rejected']:,} requests are larger than the cache and were refused"
    if run["preemptions"]:
        yield f"{run['preempted_requests']:,} requests were preempted, {run['preemptions']:,} times in all"
    if run["throughput"] < 0.9 * rate and run["num_users"] == 1:
        yield f"only {run['throughput']:.3g} of {rate:.3g} requests per second are served, so the queue grows"


def _size(run: dict[str, Any]) -> str:
    return "unlimited" if run["kv_tokens"] is None else f"{run['kv_tokens']:,}"


def _time(figures: dict[str, float], p: str) -> str:
    return show_seconds(figures[p]) if figures else "-"
