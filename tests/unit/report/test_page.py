"""Pages: text is escaped, and a heat map has its parts."""

from __future__ import annotations

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
