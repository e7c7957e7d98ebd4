"""What people see of a measurement."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtrove.bench.engine.calibrate import Calibration


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
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
