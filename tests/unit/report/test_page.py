"""Pages: text is escaped, and a heat map has its parts."""

from __future__ import annotations

import re

from kvtrove.report.heat import heat_map
from kvtrove.report.page import charts, document, table

EVIL = "<b>&"


def test_text_is_escaped_and_finished_html_is_not() -> None:
    whole = document(EVIL, [table([EVIL], [[EVIL]]), charts(["<svg></svg>"], "maps")])
    assert whole.count("&lt;b&gt;&amp;") == 3
    assert '<div class="maps"><svg></svg></div>' in whole
    assert EVIL not in whole


def test_a_heat_map_escapes_its_names_and_leaves_missing_cells_empty() -> None:
    drawn = heat_map(EVIL, ["1", EVIL], [EVIL], {(1, 0): 0.5}, ("x", EVIL))
    assert EVIL not in drawn
    assert drawn.count("<rect") == 1
    assert "50 %" in drawn


def test_a_small_grid_leaves_the_names_of_its_axes_whole() -> None:
    """Letters of an 11-pixel font are at most 7 pixels wide."""
    across, up = "tokens in the dialogue", "depth of the fact"
    drawn = heat_map("one cell", ["1"], ["2"], {(0, 0): 1.0}, (across, up))
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0])
    left, right = re.findall(rf'x="([\d.]+)"[^>]*text-anchor="start">{across}', drawn)[0], 6 * len(across)
    assert float(left) + right <= width
    [middle] = re.findall(rf"rotate\(-90 14 ([\d.]+)\)\">{up}", drawn)
    assert 3 * len(up) <= float(middle) <= height - 3 * len(up)
