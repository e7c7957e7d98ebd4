"""Where results go: a table on the terminal, JSON to a file or to stdout, and what is checked before they exist."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from kvtrove.config import ConfigError

INTERRUPTED = 130  # exit code after Ctrl-C
PIPE_WIDTH = 120  # columns of a table in a file or pipe


def console(to_stderr: bool = False) -> Console:
    """As wide as the terminal; into a file or pipe wide enough that no table is folded."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def check_folders(*paths: str | None) -> None:
    """Before minutes of measuring: ConfigError when a result could not be written. None and - need no folder."""
    for path in paths:
        if path not in (None, "-") and not Path(str(path)).absolute().parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no such folder; make it first")


def write_json(figures: Any, target: str | None, indent: int | None = None) -> None:
    """Into the file; to stdout for -; nowhere for None."""
    if target is None:
        return
    text = json_format.dumps(figures, ensure_ascii=False, allow_nan=False, indent=indent)
    if target == "-":
        typer.echo(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")


def extra(name: str) -> str:
    """The command that installs an extra: by the folder where this is a checkout, else by the package's name."""
    checkout = Path(__file__).parents[3]
    known = (checkout / "pyproject.toml").is_file() and (checkout / "src/kvtrove").is_dir()
    return f"pip install '{checkout if known else 'kvtrove'}[{name}]'"
