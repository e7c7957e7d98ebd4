"""Charts as inline SVG: axes, lines, dots, bars, marks. Colours are the page's: every shape carries a CSS class.

  top ┌───────────────┐
      │               │  y: low at the bottom
      │     plot      │
      └───────────────┘
left    x: low to high
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 560, 280  # of a chart, in pixels of its own
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 16, 44  # margins
MARK_ROOM = 4
LETTER, LINE = 6.4, 13.0
"""Width and height that a letter of a tick or of a label takes at most, with its room."""
BESIDE = 9
"""From the middle of a dot to its label."""
FEW_DECADES = 12  # a log axis over a smaller factor has too few powers of ten to read

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""


@dataclass(frozen=True)
class Axis:
    """A range of values. format: value -> text of its tick.

    log: equal factors take equal room (low > 0). whole: only whole numbers have ticks. binary: ticks of a log axis are
    powers of two, for what is counted in KiB and Ki.
    """

    label: str
    low: float
    high: float
    format: Callable[[float], str] = "{:g}".format
    log: bool = False
    whole: bool = False
    binary: bool = False

    def __post_init__(self) -> None:
        if self.high <= self.low:
            object.__setattr__(self, "high", self.low * 2 if self.log else self.low + 1)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; what lies outside stays at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """A few round values within the range."""
        if self.log and self.binary:
            powers = range(math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9) + 1)
            return [2.0**power for power in powers] or [self.low]
        if self.log and self.high / self.low > FEW_DECADES:
            return _log_ticks(self.low, self.high)
        return _linear_ticks(self.low, self.high, least_step=1.0 if self.whole else 0.0)


def _linear_ticks(low: float, high: float, least_step: float, most: int = 8) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, `most` gaps at most."""
    rough = max((high - low) / most, least_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times them where there is room."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) <= 2.5 else (1,)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _apart(ticks: Sequence[float], place: Callable[[float], float], text: Callable[[float], str]) -> Sequence[float]:
    """Every tick, or every second, third ... one, so that no two texts touch."""
    boxes = [(place(tick), LETTER * len(text(tick)) / 2 + MARK_ROOM) for tick in ticks]
    for step in range(1, len(ticks) + 1):
        if all(right - left >= a + b for (left, a), (right, b) in pairwise(boxes[::step])):
            return ticks[::step]
    return ticks[:1]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@dataclass
class Chart:
    """Shapes are drawn in the order in which they are added, over the axes."""

    title: str
    x: Axis
    y: Axis
    shapes: list[str] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    _taken: list[Box] = field(default_factory=list)

    def _x(self, value: float) -> float:
        return LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[Point], style: str, name: str = "") -> None:
        """Straight from point to point. style: a CSS class; name: in the legend."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self.shapes.append(f'<polyline class="line {style}" points="{path}"/>')
        self._name(name, style)

    def steps(self, points: Sequence[Point], style: str, name: str = "") -> None:
        """Each value holds until the next point's x."""
        corners = [corner for (x, y), (after, _) in pairwise(points) for corner in ((x, y), (after, y))]
        self.line([*corners, *points[-1:]], style, name)

    def dots(self, points: Sequence[Point], style: str, name: str = "", radius: float = 2.5) -> None:
        for x, y in points:
            title = f"<title>{escape(self.x.format(x))}: {escape(self.y.format(y))}</title>"
            place = f'cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="{radius:g}"'
            self.shapes.append(f'<circle class="dot {style}" {place}>{title}</circle>')
        self._name(name, style)

    def label(self, point: Point, text: str) -> None:
        """A name beside a dot: at the first place around it that is within the drawing and covers no other label."""
        x, y, width = self._x(point[0]), self._y(point[1]), LETTER * len(text)
        boxes = [
            (left, middle - LINE / 2, left + width, middle + LINE / 2)
            for distance in range(4)
            for middle in (y - 8 - LINE * distance, y + 8 + LINE * distance)
            for left in (x + BESIDE, x - BESIDE - width)
        ]
        inside = [box for box in boxes if box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT]
        free = [box for box in inside if not any(_overlap(box, other) for other in self._taken)]
        box = (free or inside or boxes)[0]
        self._taken.append(box)
        self._text(box[0], box[3] - 3, text, "start", "marked")

    def bars(self, values: Sequence[Point], style: str) -> None:
        """One bar per x, from the bottom up to y, its value above it."""
        room = (WIDTH - LEFT - RIGHT) / max(1, len(values))
        width = min(40.0, 0.7 * room)
        for x, y in values:
            left, top = self._x(x) - width / 2, self._y(y)
            height = HEIGHT - BOTTOM - top
            self.shapes.append(
                f'<rect class="bar {style}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
            )
            if room > 30:
                self._text(self._x(x), top - MARK_ROOM, self.y.format(y), "middle")

    def mark_x(self, value: float, text: str) -> None:
        """A dashed line across, with a word at its top."""
        x, right = self._x(value), self.x.place(value) > 0.7
        self._rule(x, TOP, x, HEIGHT - BOTTOM, "mark")
        self._text(x - MARK_ROOM if right else x + MARK_ROOM, TOP + 10, text, "end" if right else "start", "marked")

    def mark_y(self, value: float, text: str) -> None:
        y = self._y(value)
        self._rule(LEFT, y, WIDTH - RIGHT, y, "mark")
        self._text(WIDTH - RIGHT, y - MARK_ROOM, text, "end", "marked")

    def svg(self) -> str:
        """The whole figure, with its title and legend as text beside the drawing."""
        keys = "".join(f'<span class="key {style}">{escape(name)}</span>' for name, style in self.legend)
        drawing = "".join([*self._axes(), *self.shapes])
        view = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}"'
        return (
            f"<figure><figcaption>{escape(self.title)}<span class=legend>{keys}</span></figcaption>"
            f"<svg class='chart' {view}>{drawing}</svg></figure>"
        )

    def file(self, style: str) -> str:
        """The drawing as an SVG file of its own. style: CSS for the classes that are used."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{style}</style>'
        return "".join([head, *self._axes(), *self.shapes, "</svg>\n"])

    def _axes(self) -> list[str]:
        own, self.shapes = self.shapes, []
        bottom = HEIGHT - BOTTOM
        for value in self.y.ticks():
            self._rule(LEFT, self._y(value), WIDTH - RIGHT, self._y(value), "grid")
            self._text(LEFT - 6, self._y(value) + 4, self.y.format(value), "end")
        for value in _apart(self.x.ticks(), self._x, self.x.format):
            self._rule(self._x(value), bottom, self._x(value), bottom + 4, "axis")
            self._text(self._x(value), bottom + 17, self.x.format(value), "middle")
        self._rule(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
        self._text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, self.x.label, "middle", "name")
        middle = (TOP + bottom) / 2
        turn = f' transform="rotate(-90 14 {middle:g})"'
        self._text(14, middle, self.y.label, "middle", "name", turn)
        axes, self.shapes = self.shapes, own
        return axes

    def _name(self, name: str, style: str) -> None:
        if name:
            self.legend.append((name, style))

    def _rule(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.shapes.append(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def _text(self, x: float, y: float, text: str, anchor: str, style: str = "tick", more: str = "") -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.shapes.append(f'<text class="{style}" {place}{more}>{escape(text)}</text>')
