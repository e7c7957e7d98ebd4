"""Tables of a terminal that never cut a cell: what is too wide for it is written row by row."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # columns


class FittingTable(Table):
    """A table where it fits; otherwise each row as a heading with `title  value` lines below it."""

    def __rich_console__(self, console: Any, options: Any) -> Any:
        wanted = self.__rich_measure__(console, options.update(max_width=UNBOUNDED)).maximum
        if wanted <= options.max_width:
            yield from super().__rich_console__(console, options)
        else:
            yield from self._rows(console)

    def _rows(self, console: Any) -> Any:
        if self.title:
            yield Text.from_markup(str(self.title), style="italic")
        titles = [_plain(console, column.header) for column in self.columns]
        width = max(map(len, titles))
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            texts = [_plain(console, cell) for cell in cells]
            yield Text(f"{titles[0]} {texts[0]}".strip() or "-", style="bold")
            for title, text in zip(titles[1:], texts[1:], strict=True):
                if text:
                    yield Text(f"  {title:<{width}}  {text}".rstrip())


def _plain(console: Any, cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
