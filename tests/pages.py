"""Pages of documentation as tests read them: their blocks, the commands in these, and what the commands print.

Lines of a console block that start with "$ " are commands. The other lines must come out of the command above them, in
this order. "…" stands for any text. A figure is equal to the one that is printed, or within what the page states above
the block, `<!-- figures within 5 % -->`; those in a unit of time or of a rate (0.01 s, 34 tokens/s) are the machine's,
and may be any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURE = r"\d+(?:,\d{3})*(?:\.\d+)?"
OF_THE_MACHINE = re.compile(r"\s?(s|ms|min|h|[a-z]+/s|[GT]B/s|TFLOP/s)(?![\w/])")
_FENCE = re.compile(
    r"^(?:<!-- figures within (?P<within>[\d.]+) % -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """language: what stands behind the fence. within: the relative error that the page states for its figures."""

    page: str
    language: str
    text: str
    within: float = 0.0

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, lines that it prints according to the page)."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:50]}"


def pages() -> list[str]:
    """All of them, by their paths in the repository."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, *languages: str) -> list[Block]:
    """In their order; of any language without one."""
    found = _FENCE.finditer((ROOT / page).read_text(encoding="utf-8"))
    whole = [Block(page, m["language"], m["text"], float(m["within"] or 0) / 100) for m in found]
    return [block for block in whole if not languages or block.language in languages]


def check_printed(expected: list[str], printed: list[str], within: float = 0.0) -> None:
    """AssertionError for the first line that does not come, or comes with another figure."""
    rest = iter(printed)
    for line in expected:
        if line.strip() != "…":
            assert any(_is_line(line.strip(), got.strip(), within) for got in rest), f"{line!r} is not in {printed}"


def _is_line(line: str, got: str, within: float) -> bool:
    parts = re.split(f"(…|{FIGURE})", line)
    pattern = "".join(
        f"({FIGURE})" if at % 2 and part != "…" else ".*" if at % 2 else re.escape(part)
        for at, part in enumerate(parts)
    )
    found = re.fullmatch(pattern, got)
    return found is not None and all(
        abs(_number(printed) - _number(figure)) <= within * _number(figure)
        for (figure, behind), printed in zip(_figures(parts), found.groups(), strict=True)
        if not OF_THE_MACHINE.match(behind)
    )


def _figures(parts: list[str]) -> Iterator[tuple[str, str]]:
    """(figure, text behind it)."""
    return ((parts[at], parts[at + 1]) for at in range(1, len(parts), 2) if parts[at] != "…")


def _number(figure: str) -> float:
    return float(figure.replace(",", ""))
