"""A heat map: a grid of shares, each cell as strong as its value and with the value in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

CELL_WIDTH, CELL_HEIGHT = 64, 34  # pixels of the drawing's own
LEFT, TOP, BOTTOM, RIGHT = 72, 8, 40, 6  # margins
LETTER = 7  # width of a letter of an axis' name at most
LEAST, STRONG = 0.04, 0.55  # opacity of 0 %; above STRONG the text turns light

Place = tuple[int, int]


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], shares: Mapping[Place, float], axes: tuple[str, str]
) -> str:
    """A figure. shares: (column, row) -> 0 to 1; what is missing stays empty. axes: names of columns and rows."""
    grid_width, grid_height = CELL_WIDTH * len(columns), CELL_HEIGHT * len(rows)
    width = LEFT + max(grid_width, LETTER * len(axes[0])) + RIGHT  # a small grid leaves its axes' names whole
    tall = LETTER * len(axes[1])  # the name of the rows stands upright beside them
    height = max(TOP + grid_height + BOTTOM, tall + 2 * TOP)
    shapes = [_cell(place, share) for place, share in sorted(shares.items())]
    bottom = TOP + grid_height
    shapes += [_text(LEFT + CELL_WIDTH * (x + 0.5), bottom + 16, name, "tick") for x, name in enumerate(columns)]
    shapes += [_text(LEFT - 8, TOP + CELL_HEIGHT * (y + 0.5) + 4, name, "tick", "end") for y, name in enumerate(rows)]
    middle = max(TOP + grid_height / 2, TOP + tall / 2)
    shapes.append(_text(LEFT, bottom + 34, axes[0], "name", "start"))
    shapes.append(_text(14, middle, axes[1], "name", more=f' transform="rotate(-90 14 {middle:g})"'))
    view = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"'
    style = f'style="max-width: {1.5 * width:g}px"'
    return f"<figure><figcaption>{escape(title)}</figcaption><svg {view} {style}>{''.join(shapes)}</svg></figure>"


def _cell(place: Place, share: float) -> str:
    x, y = LEFT + CELL_WIDTH * place[0], TOP + CELL_HEIGHT * place[1]
    opacity = LEAST + (1 - LEAST) * share
    box = f'x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="3"'
    style = "cell strong" if opacity > STRONG else "cell"
    text = _text(x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2 + 4, f"{100 * share:.0f} %", style)
    return f'<rect class="cell-box" {box} fill-opacity="{opacity:.3f}"/>{text}'


def _text(x: float, y: float, text: str, style: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
