"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "note", "warning"]
"""ok: as it should be. note: worth knowing. warning: it slows inference down or will stop it."""


@dataclass(frozen=True)
class Check:
    """name: without spaces, unique. section: a heading. text: what was found. meaning: a sentence on what follows.

    value: the same for programs; sizes in bytes, rates per second. fix: commands that change it, in their order.
    """

    name: str
    section: str
    text: str
    meaning: str
    value: Any = None
    state: State = "ok"
    fix: tuple[str, ...] = ()


def text_of(path: Path) -> str | None:
    """What a file of proc or sys holds, without the line's end; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
