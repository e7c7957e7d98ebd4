"""An evaluation as text for people: rich tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtrove.evaluate.evaluation import Evaluation
from kvtrove.evaluate.results import Row, remarks, rows
from kvtrove.plan.capacity import readable
from kvtrove.report.table import FittingTable

TITLES = (
    "cache", "bytes/token", "KL mean", "KL median", "KL p99", "top-1", "perplexity", "recall", "prefill tok/s",
    "decode tok/s",
)  # fmt: skip


def result_table(evaluation: Evaluation) -> RenderableType:
    """One line per configuration; below it recall by length, when there are several lengths; then the notes."""
    found = rows(evaluation)
    parts: list[RenderableType] = [table(*columns(found))]
    lengths = sorted({length for row in found for length, _ in row.recall})
    if len(lengths) > 1:
        by_length = [[row.name, *(share(row.recall_at(length)) for length in lengths)] for row in found]
        parts.append(table(("recall at", *(f"{length:,} tokens" for length in lengths)), by_length))
    return Group(*parts, *(Text(f"note: {note}") for note in remarks(evaluation)))


def columns(found: list[Row]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Titles and lines. What weights take is told where they are not the same for all."""
    lines = [_cells(row) for row in found]
    titles: tuple[str, ...] = TITLES
    if any(row.turns is not None for row in found):
        titles = (*TITLES[:8], "turns", *TITLES[8:])
        lines = [[*line[:8], share(row.turns), *line[8:]] for row, line in zip(found, lines, strict=True)]
    if len({row.weight_bytes for row in found}) < 2:
        return titles, lines
    weights = ["-" if row.weight_bytes is None else readable(row.weight_bytes) for row in found]
    return (*titles[:2], "weights", *titles[2:]), [
        [*line[:2], size, *line[2:]] for line, size in zip(lines, weights, strict=True)
    ]


def _cells(row: Row) -> list[str]:
    """Under TITLES."""
    one = row.fidelity
    texts = ["-"] * 5 if one is None else [nats(one.kl_mean), nats(one.kl_median), nats(one.kl_p99)]
    if one is not None:
        texts += [share(one.top1, 2), f"{one.perplexity:,.2f}"]
    return [
        row.name,
        f"{row.bytes_per_token:,.0f}",
        *texts,
        share(row.mean_recall),
        *("-" if rate is None else f"{rate:,.{0 if rate >= 10 else 1}f}" for rate in (row.prefill, row.decode)),
    ]


def nats(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def share(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def table(titles: tuple[str, ...], lines: list[list[str]]) -> Table:
    """Lines of figures under their titles, as wide as the terminal allows."""
    made = FittingTable(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        made.add_column(title, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        made.add_row(*(Text(text) for text in line))
    return made
