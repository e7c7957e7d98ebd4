"""Words and numbers of the terminal output, in one place so that all commands read alike."""

from __future__ import annotations

import re
import sys

from rich.console import Console
from rich.text import Text

# C0 and C1 control characters but tab and newline: a model's output must not move the cursor or recolour the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    """`text` as it may be written to stdout: unchanged into a pipe or file, no control characters on a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


def say(text: str, style: str = "", err: bool = False, wrap: bool = False) -> None:
    """Print a line of our own words, styled on a terminal (not with NO_COLOR). wrap: between words, on a terminal."""
    console = Console(stderr=err, highlight=False)
    console.print(Text(text, style), soft_wrap=not (wrap and console.file.isatty()))


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def reuse(prompt_tokens: int, cached_tokens: int) -> str:
    """The cache's line: ``412 prompt tokens, 384 reused (93 %), 28 computed``."""
    share, computed = percent(cached_tokens, prompt_tokens), prompt_tokens - cached_tokens
    return f"{prompt_tokens:,} prompt tokens, {cached_tokens:,} reused ({share}), {computed:,} computed"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
