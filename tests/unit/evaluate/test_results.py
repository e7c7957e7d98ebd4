"""From results of cells to figures, JSON, tables and a page. The results are written by hand."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from kvtrove.evaluate.evaluation import Evaluation
from kvtrove.evaluate.html import front, page, pareto
from kvtrove.evaluate.results import FORMAT, as_json, prices, remarks, rows
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.tables import nats, result_table
from kvtrove.report.svg import Chart

EVIL = "<script>alert(1)</script>"


def text(kl: list[float], nll: float, same_top: int) -> dict[str, Any]:
    return {"kl": kl, "nll": nll, "same_top": same_top}


def cell(length: int, depth: float, hits: int) -> dict[str, Any]:
    return {"length": length, "depth": depth, "hits": hits, "answers": [f"{EVIL} {i}" for i in range(4)]}


def evaluation() -> Evaluation:
    """Two configurations; the second one forgets what stands early in a long dialogue."""
    exact = {
        "text": [text([0.0] * 4, 4 * math.log(8), 4), text([0.0] * 2, 2 * math.log(2), 2)],
        "recall": [cell(512, 0.0, 4), cell(512, 1.0, 4), cell(1024, 0.0, 3), cell(1024, 1.0, 4)],
        "speed": [{"prefill": 1000.0, "decode": 50.0}, {"prefill": 3000.0, "decode": 40.0}],
    }
    window = {
        "text": [text([0.0, 0.1, 0.2, 0.3], 12.0, 3), text([0.0, 0.6], 3.0, 1)],
        "recall": [cell(512, 0.0, 0), cell(512, 1.0, 4), cell(1024, 0.0, 0), cell(1024, 1.0, 2)],
        "speed": [{"prefill": 2000.0, "decode": 45.0}],
    }
    settings = Settings(f"models/{EVIL}").resolved(1024)
    results, roots = {"exact": exact, "window=4": window}, {"exact": "e", "window=4": "w"}
    return Evaluation(settings, {"exact": 2048.0, "window=4": 512.5}, results, [], 13, 14, roots=roots)


def shown(found: Evaluation) -> str:
    console = Console(width=140, record=True, file=None)
    with console.capture() as captured:
        console.print(result_table(found))
    return captured.get()


def test_a_cache_that_the_model_does_not_bear_is_named_and_has_its_price() -> None:
    """4 of 6 likeliest tokens are the same."""
    [(root, price)] = prices(evaluation()).items()
    assert (root, price.cache, price.top1, price.is_borne) == ("w", "window=4", 4 / 6, False)
    assert remarks(evaluation()) == ["window=4 is not borne by this model: top-1 66.7% is below 90%"]
    assert "note: window=4 is not borne by this model" in shown(evaluation())


def test_figures_are_over_all_predictions_of_all_segments() -> None:
    exact, window = rows(evaluation())
    assert exact.fidelity is not None
    assert window.fidelity is not None
    assert exact.fidelity.perplexity == pytest.approx(8 ** (4 / 6) * 2 ** (2 / 6))
    assert (exact.fidelity.top1, window.fidelity.top1) == (1.0, 4 / 6)
    assert window.fidelity.kl_mean == pytest.approx(0.2)
    assert window.fidelity.kl_median == pytest.approx(0.15)
    assert window.fidelity.kl_p99 == pytest.approx(0.585)  # between the last two of six
    assert window.fidelity.perplexity == pytest.approx(math.exp(15 / 6))


def test_recall_is_a_share_per_cell_and_their_mean() -> None:
    exact, window = rows(evaluation())
    assert exact.recall == {(512, 0.0): 1.0, (512, 1.0): 1.0, (1024, 0.0): 0.75, (1024, 1.0): 1.0}
    assert (window.mean_recall, window.recall_at(512), window.recall_at(1024)) == (0.375, 0.5, 0.25)
    assert window.recall_at(2048) is None


def test_recall_of_a_model_that_cannot_recall_says_nothing() -> None:
    found = evaluation()
    found.results["exact"]["recall"] = [cell(512, 0.0, 1)]
    for said in (as_json(found, "1")["notes"][-1], " ".join(shown(found).split()), page(found)):
        assert "the exact cache itself recalls 25 %, so recall says nothing of the others: --needle FILE" in said
    assert not any("says nothing" in note for note in as_json(evaluation(), "1")["notes"])


def test_speed_is_the_median_of_the_rounds() -> None:
    exact, window = rows(evaluation())
    assert (exact.prefill, exact.decode) == (2000.0, 45.0)
    assert (window.prefill, window.decode) == (2000.0, 45.0)


def test_the_json_has_every_figure_and_answer() -> None:
    found = json.loads(json.dumps(as_json(evaluation(), "1.2"), allow_nan=False))
    assert (found["format"], found["kvtrove"], found["interrupted"]) == (FORMAT, "1.2", True)
    assert found["cells"] == {"done": 13, "total": 14}
    exact, window = found["configurations"]
    assert (window["name"], window["bytes_per_token"], window["mean_recall"]) == ("window=4", 512.5, 0.375)
    assert exact["recall"][0] == {
        "length": 512, "depth": 0.0, "share": 1.0, "answers": [f"{EVIL} {i}" for i in range(4)]
    }  # fmt: skip


def test_the_table_has_a_line_per_configuration() -> None:
    lines = [" ".join(line.split()) for line in shown(evaluation()).splitlines()]
    assert "exact 2,048 0 0 0 100.00 % 5.04 94 % 2,000 45" in lines
    assert "window=4 512 0.2 0.15 0.59 66.67 % 12.18 38 % 2,000 45" in lines
    assert "recall at 512 tokens 1,024 tokens" in lines
    assert "window=4 50 % 25 %" in lines


def test_what_was_not_measured_is_a_dash() -> None:
    bare = replace(evaluation(), results={"exact": {}}, notes=["recall is left out"])
    printed = shown(bare)
    assert printed.split("decode tok/s")[1].split()[:10] == ["exact", "2,048", *["-"] * 8]
    assert "note: recall is left out" in printed
    assert "<svg" not in page(bare)
    assert "recall is left out" in page(bare)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1.234e-7, "1.2e-07"), (0.5, "0.5")])
def test_nats_are_short(value: float, text: str) -> None:
    assert nats(value) == text


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    outline = Outline()
    outline.feed(page(evaluation()))
    assert {"script", "link", "img", "iframe"}.isdisjoint(outline.tags)
    assert outline.tags.count("figure") == outline.tags.count("svg") == 4


def test_a_heat_map_shows_every_cell_stronger_the_more_is_recalled() -> None:
    maps = [
        ElementTree.fromstring(svg)
        for svg in re.findall(r"<svg.*?</svg>", page(evaluation()))[-len(rows(evaluation())) :]
    ]
    for svg, row in zip(maps, rows(evaluation()), strict=True):
        boxes = [
            (float(e.get("x", "")), float(e.get("y", "")), float(e.get("fill-opacity", ""))) for e in svg.iter("rect")
        ]
        words = [e.text for e in svg.iter("text") if e.get("class", "").startswith("cell")]
        assert words == [f"{100 * share:.0f} %" for _, share in sorted(row.recall.items())]
        by_place = dict(zip(sorted(row.recall), sorted(boxes), strict=True))  # left to right, then from the top down
        strengths = sorted((row.recall[place], opacity) for place, (_, _, opacity) in by_place.items())
        assert [opacity for _, opacity in strengths] == sorted(opacity for _, opacity in strengths)


def places(chart: Chart | None) -> dict[str, tuple[float, float]]:
    """Name beside each dot -> where the dot is."""
    assert chart is not None
    [drawing] = re.findall(r"<svg.*</svg>", chart.svg())
    svg = ElementTree.fromstring(drawing)
    dots = [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in svg.iter("circle")]
    names = [e.text or "" for e in svg.iter("text") if e.get("class") == "marked"]
    return dict(zip(names, dots, strict=True))


def test_the_pareto_chart_puts_fewer_bytes_left_and_less_loss_down() -> None:
    found = places(pareto(rows(evaluation())))
    assert set(found) == {"exact", "window=4 (0.2)"}
    (exact_x, exact_y), (window_x, window_y) = found["exact"], found["window=4 (0.2)"]
    assert window_x < exact_x
    assert window_y < exact_y  # pixels grow downwards


def test_equal_places_share_a_label_and_no_kl_above_zero_is_fine() -> None:
    exact, _ = rows(evaluation())
    assert set(places(pareto([exact, replace(exact, name="bf16")]))) == {"exact, bf16"}


def test_the_front_is_what_nothing_else_beats() -> None:
    assert front([(4, 0.0), (2, 0.1), (3, 0.2), (1, 0.5), (2, 0.3)]) == [(1, 0.5), (2, 0.1), (4, 0.0)]
