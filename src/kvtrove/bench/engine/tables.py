"""What people see of a measurement."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtrove.bench.engine.calibrate import Calibration
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.summary import Figure
from kvtrove.report.table import FittingTable

CONFIDENCE = 1.96  # standard errors on either side: 95 of 100 repetitions lie within
KERNELS = "kernels."


def _table(*titles: str) -> Table:
    table = FittingTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    return table


def calibration_table(found: Calibration, path: str) -> RenderableType:
    """The coefficients in milliseconds, and how well they explain what was measured."""
    machine, fit = found.machine, found.machine.fit
    assert fit is not None
    table = _table("a step costs", "ms")
    for label, seconds, unit in (
        ("to begin with", fit.fixed, 1),
        ("per 1000 tokens computed", fit.per_token, 1000),
        ("per 1000 cached tokens read", fit.per_cached_token, 1000),
        ("per million (query, key) pairs of prompts", fit.per_pair, 10**6),
    ):
        table.add_row(label, f"{seconds * unit * 1e3:.3g}")
    told = f"{found.num_steps} different steps, of which half are fitted within {100 * found.error:.1f} %"
    speeds = f"reading {machine.bandwidth / 1e9:.1f} GB/s, bf16 products {machine.flops / 1e12:.3g} TFLOP/s"
    parts: list[RenderableType] = [Text(machine.name, style="bold"), table, Text(speeds), Text(told)]
    if found.interrupted:
        parts.append(Text("stopped by hand: fitted to what was measured until then", style="yellow"))
    return Group(*parts, Text(f"written to {path}; kvtrove plan MODEL --calibration {path}"))


def measurement_table(found: Measurement) -> RenderableType:
    """All that a command prints: settings, figures with the 95 % interval of their medians, kernels, notes."""
    title = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    parts: list[RenderableType] = [Text(f"{found.kind}: {title}", style="bold")]
    table = _table("", "median", "spread")
    for name, figure in found.figures.items():
        if not name.startswith(KERNELS):
            table.add_row(name, shown(figure), spread(figure))
    parts.append(table)
    if any(name.startswith(KERNELS) for name in found.figures):
        parts.append(_kernels(found))
    for name, value in found.facts.items():
        parts.append(Text(f"{name}: {value:,}" if isinstance(value, int | float) else f"{name}: {value}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in found.notes]
    if found.interrupted:
        parts.append(Text("stopped by hand: figures are of what was measured until then", style="yellow"))
    return Group(*parts)


def shown(figure: Figure) -> str:
    """Four digits, and no exponent for what people compare."""
    value = figure.value
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(figure: Figure) -> str:
    if figure.error is None or not figure.value:
        return "-"
    return f"± {100 * CONFIDENCE * figure.error / abs(figure.value):.1f} %"


def _kernels(found: Measurement) -> Table:
    columns = ("ms", "gb_per_s", "tflop_per_s", "of_limit")
    table = _table("kernel", *columns, "spread")
    names = dict.fromkeys(name.split(".")[1] for name in found.figures if name.startswith(KERNELS))
    for name in names:
        row = [found.figures[f"{KERNELS}{name}.{column}"] for column in columns]
        table.add_row(name, *map(shown, row), spread(row[0]))
    return table
