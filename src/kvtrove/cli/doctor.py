"""`kvtrove doctor`: what this machine and this installation offer, and what is wrong with them."""

from __future__ import annotations

import itertools
import json as json_format
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove.cli.options import JsonFlag
from kvtrove.cli.text import counted, say

if TYPE_CHECKING:
    from kvtrove.doctor.check import Check
    from kvtrove.doctor.report import Report

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow"}
WIDTH = 80


def doctor(
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Memory and processor, for 3 s.")] = True,
    fix: Annotated[bool, typer.Option("--fix", help="Also print the commands that better it.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what this machine does for inference, what that means, and what slows it down."""
    from kvtrove.doctor.report import examine

    report = examine(measure=measure)
    if json:
        typer.echo(json_format.dumps(report.as_json()))
        return
    say("versions", "bold")
    for line in textwrap.wrap(", ".join(f"{name} {number}" for name, number in report.versions.items()), WIDTH - 2):
        say(f"  {line}")
    for section, checks in itertools.groupby(report.checks, key=lambda check: check.section):
        say(section, "bold")
        for check in checks:
            _show(check)
    _conclude(report, fix)


def _show(check: Check) -> None:
    indent = " " * 11
    for number, line in enumerate(_wrapped(check.text, indent)):
        say(f"  {check.state:<8} {line.strip()}" if number == 0 else line, STYLES[check.state])
    for line in _wrapped(check.meaning, indent):
        say(line, "dim")


def _wrapped(text: str, indent: str) -> list[str]:
    """Paths are longer than a line and stay whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _conclude(report: Report, fix: bool) -> None:
    warnings = report.warnings
    if fix:
        for check in report.checks:
            if check.fix and check.state != "ok":
                say(f"# {check.text}", "dim")
                for command in check.fix:
                    say(command)
    if not warnings:
        say("nothing to warn about", "green")
    elif not fix:
        say(f"{counted(len(warnings), 'warning')}: `kvtrove doctor --fix` prints what to do", "yellow")
