"""`kvtrove bench compare` and `alternate`: what changed between two sides, and runs in turn that can tell."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from kvtrove.cli.flags import flag
from kvtrove.cli.options import QuietFlag
from kvtrove.cli.output import INTERRUPTED, console, extra
from kvtrove.config import ConfigError


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A result (--json), or a folder of results.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The other side.")],
) -> None:
    """Print how each measure changed from A to B, and how much of that may be chance."""
    require_httpx()
    from kvtrove.bench.results_file import Side
    from kvtrove.bench.tables import comparison_table

    console().print(comparison_table(Side.of(before), Side.of(after)))


def alternate(
    words: Annotated[list[str], typer.Argument(metavar="-- A... [-- B...]", help="What follows `kvtrove bench`.")],
    pairs: Annotated[int, flag("Load", "N", "Runs of each side.")] = 8,
    out: Annotated[str | None, flag("Output", "FOLDER", "Keep the results there, in a/ and b/.")] = None,
    quiet: QuietFlag = False,
) -> None:
    """Run two commands in turn, as often as it takes to tell them from chance, and compare them.

    B that begins with a flag is A with these flags more; without B, A runs against itself. A command that begins with a
    path runs another kvtrove: /old/bin/kvtrove bench decode demo

    Example: kvtrove bench alternate -- decode demo -- --cache int8
    """
    require_httpx()
    from kvtrove.bench.alternate import SIDES, Alternation, sides_of
    from kvtrove.bench.chance import ENOUGH
    from kvtrove.bench.results_file import Side
    from kvtrove.bench.tables import comparison_table
    from kvtrove.progress import loading

    if pairs < ENOUGH:
        raise ConfigError(f"pairs: {pairs} cannot tell a difference from chance; --pairs {ENOUGH} can")
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ConfigError(f"out: {out} is not an empty folder; name a new one, such as {out}-2")
    with TemporaryDirectory() as kept_nowhere, loading(not quiet) as report:
        folder = Path(out or kept_nowhere)
        ended = Alternation(sides_of(words), pairs, folder).run(SystemRandom(), report or (lambda *_: None))
        table = comparison_table(*(Side.of(str(folder / side)) for side in SIDES))
    console().print(table)
    if ended:
        raise typer.Exit(INTERRUPTED)


def require_httpx() -> None:
    """ConfigError with the command that installs the package, where it is missing."""
    if find_spec("httpx") is None:
        raise ConfigError(f"kvtrove bench needs the package httpx: {extra('bench')}")
