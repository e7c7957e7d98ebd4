"""Charts: scales, ticks, and shapes that stay within the drawing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Chart

PLOT_X, PLOT_Y = (LEFT, WIDTH - RIGHT), (TOP, HEIGHT - BOTTOM)


def chart(x: Axis | None = None, y: Axis | None = None) -> Chart:
    return Chart("A <title>", x or Axis("x & more", 0, 10), y or Axis("y", 0, 1))


def drawing(found: Chart) -> ElementTree.Element:
    [svg] = re.findall(r"<svg.*</svg>", found.svg())
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis("", 0, 43), [0, 10, 20, 30, 40]),
        (Axis("", 3, 4), [3, 3.2, 3.4, 3.6, 3.8, 4]),
        (Axis("", 0.01, 1, log=True), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]),
        (Axis("", 0.001, 10, log=True), [0.001, 0.01, 0.1, 1, 10]),
        (Axis("", 0.13, 0.7, log=True), [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        (Axis("", 2**20, 2**24, log=True, binary=True), [2**20, 2**21, 2**22, 2**23, 2**24]),
        (Axis("", 3000, 5000, log=True, binary=True), [4096]),
        (Axis("", 0, 4, whole=True), [0, 1, 2, 3, 4]),
        (Axis("", 0.5, 2.5, whole=True), [1, 2]),
        (Axis("", 0, 43, whole=True), [0, 10, 20, 30, 40]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_linear_axis_has_a_few_ticks_within_its_range(low: float, width: float) -> None:
    axis = Axis("", low, low + width)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 9
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in ticks)


def test_places_are_proportional_and_values_outside_stay_at_the_edge() -> None:
    linear, log = Axis("", 0, 10), Axis("", 0.01, 100, log=True)
    assert [linear.place(v) for v in (-5, 0, 2.5, 10, 99)] == [0, 0, 0.25, 1, 1]
    assert [log.place(v) for v in (0, 0.01, 1, 100)] == pytest.approx([0, 0, 0.5, 1])


def test_an_axis_without_extent_is_widened() -> None:
    assert Axis("", 3, 3).place(3) == 0
    assert Axis("", 3, 3, log=True).ticks()


def test_shapes_are_where_their_values_are() -> None:
    found = chart()
    found.line([(0, 0), (10, 1)], "s1", "up")
    found.dots([(5, 0.5)], "s2")
    found.bars([(5, 1.0)], "s1")
    svg = drawing(found)
    [line] = [e for e in svg if e.tag == "polyline"]
    assert line.get("points") == f"{PLOT_X[0]}.0,{PLOT_Y[1]}.0 {PLOT_X[1]}.0,{PLOT_Y[0]}.0"
    [dot] = [e for e in svg if e.tag == "circle"]
    middle = (sum(PLOT_X) / 2, sum(PLOT_Y) / 2)
    assert (float(dot.get("cx", "")), float(dot.get("cy", ""))) == pytest.approx(middle)
    [bar] = [e for e in svg if e.tag == "rect"]
    assert float(bar.get("height", "")) == pytest.approx(PLOT_Y[1] - PLOT_Y[0])


def test_steps_hold_a_value_until_the_next() -> None:
    found = chart(y=Axis("y", 0, 2))
    found.steps([(0, 1), (5, 2), (10, 0)], "s1")
    [line] = [e for e in drawing(found) if e.tag == "polyline"]
    points = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
    assert [(x - LEFT) / (PLOT_X[1] - PLOT_X[0]) for x, _ in points] == pytest.approx([0, 0.5, 0.5, 1, 1])
    assert [(PLOT_Y[1] - y) / (PLOT_Y[1] - PLOT_Y[0]) for _, y in points] == pytest.approx([0.5, 0.5, 1, 1, 0])


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=20))
def test_nothing_leaves_the_plot(points: list[tuple[float, float]]) -> None:
    found = chart()
    found.dots(points, "s1")
    for dot in (e for e in drawing(found) if e.tag == "circle"):
        assert PLOT_X[0] - 0.1 <= float(dot.get("cx", "")) <= PLOT_X[1] + 0.1
        assert PLOT_Y[0] - 0.1 <= float(dot.get("cy", "")) <= PLOT_Y[1] + 0.1


def test_text_is_escaped() -> None:
    found = chart()
    found.mark_x(5, "<limit>")
    found.mark_y(0.5, "goal")
    found.line([(0, 0)], "s1", "<name>")
    assert "A &lt;title&gt;" in found.svg()
    assert "&lt;name&gt;" in found.svg()
    texts = [e.text for e in drawing(found) if e.tag == "text"]
    assert {"<limit>", "goal", "x & more", "y"} <= set(texts)


def boxes(svg: ElementTree.Element, style: str) -> list[tuple[float, float, float, float]]:
    """Where texts of a class lie, by the width that their letters have at least (5.5 pixels of an 11-pixel font)."""
    found = []
    for text in svg.iter("text"):
        if text.get("class") == style:
            width = 5.5 * len(text.text or "")
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "")]
            found.append((left, y - 9, left + width, y))
    return found


def apart(found: list[tuple[float, float, float, float]]) -> bool:
    return not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for number, a in enumerate(found)
        for b in found[:number]
    )


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.booleans())
def test_ticks_never_touch(low: float, width: float, log: bool) -> None:
    low = low + 1 if log else low
    found = chart(x=Axis("x", low, low + width, "{:,.2f}".format, log=log), y=Axis("y", low, low + width, log=log))
    assert apart(boxes(drawing(found), "tick"))


def test_labels_of_close_dots_stand_apart_and_within_the_drawing() -> None:
    found = chart()
    for number in range(5):
        found.label((9.0 + 0.02 * number, 0.5), f"a rather long name {number}")
    placed = boxes(drawing(found), "marked")
    assert len(placed) == 5
    assert apart(placed)
    assert all(left >= 0 and right <= WIDTH and top >= 0 and bottom <= HEIGHT for left, top, right, bottom in placed)
