"""No cell of a table is cut: at 80 columns, at 40, and in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kvtrove.cli import output
from kvtrove.cli.main import app
from kvtrove.evaluate.tables import TITLES
from kvtrove.report.table import FittingTable

TRACES = Path(__file__).parents[2] / "data" / "traces"
TRACE = str(next(TRACES.glob("mooncake*")))
COMMANDS = {
    "plan": ("plan", "demo", "--memory", "8GiB", "--rate", "3/s", "--slo-ttft", "1s", "--presets"),
    "simulate": ("simulate", "--trace", TRACE, "--limit", "40", "--kv-tokens", "1Mi,16Mi,unlimited"),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_cuts_a_cell(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PIPE_WIDTH", width)
    result = CliRunner().invoke(app, list(COMMANDS[command]))
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    assert "..." not in result.output


def drawn(table: FittingTable, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def evaluation_table() -> FittingTable:
    table = FittingTable(box=None, padding=(0, 2, 0, 0))
    for title in TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(
        "bf16+window=256", "12,345", "0.0012", "0.00034", "0.056", "99.12 %", "12,345.67", "100 %", "1,234", "56"
    )
    return table


@pytest.mark.parametrize("width", [40, 80, 140])
def test_an_evaluation_is_readable_at_every_width(width: int) -> None:
    text = drawn(evaluation_table(), width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("bf16+window=256", "100 %", "12,345.67", "KL median", "decode tok/s"):
        assert word in text
    assert (len(text.splitlines()) == 2) == (width == 140), "a table where it fits"
