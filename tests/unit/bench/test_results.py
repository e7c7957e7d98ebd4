"""What becomes of a result: JSON and back, comparison, tables, page. Made from hand-written records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from kvtrove.bench.benchmark import Result, Run, Settings
from kvtrove.bench.chance import ENOUGH
from kvtrove.bench.compare import compare, differences, names, pairs
from kvtrove.bench.html import page
from kvtrove.bench.probe import Probe
from kvtrove.bench.record import TIMEOUT, UNFINISHED, Record
from kvtrove.bench.results_file import FORMAT, Side, as_json, read
from kvtrove.bench.settings import Load, Slo, Target, Workload
from kvtrove.bench.summary import summarise
from kvtrove.bench.tables import comparison_table, label, result_table, shown
from kvtrove.config import ConfigError
from tests.unit.bench.records import record, steady

KEY = "sk-very-secret"
EVIL = "<script>alert(1)</script>[bold]"


def some_records(ttft: float = 0.5) -> list[Record]:
    """60 conversations of two turns, one per second; every tenth starts late, one fails, one is abandoned."""
    found = [steady(0.0, 9.0, 0.02, 4, conversation=99, warmup=True)]
    for n in range(60):
        slow = 2.0 if n % 10 == 0 else ttft + 0.001 * (n % 7)
        for turn in range(2):
            more: dict[str, Any] = {"prompt_tokens": 100 * (turn + 1), "cached_tokens": 90 * turn}
            found.append(steady(n + turn / 2, slow, 0.02, 5, n, turn=turn, num_turns=2, **more))
    found.append(record(60, [], 60, status="http 429", error=EVIL))
    found.append(record(61, [(0.1, 1)], 61, status=TIMEOUT, error="no complete answer within 5 s", ended=66.0))
    return found


def result(records: list[Record] | None = None, rates: tuple[float, ...] = (), **load: Any) -> Result:
    slo = Slo(1.0, 0.05)
    load = {"rate": 2.0, "requests": 62, "warmup": 1, "seed": 5} | load
    target = Target("http://127.0.0.1:8000", model="tiny", api_key=KEY, extra_body={"top_k": 1})
    settings = Settings(target, Load(**load) if not rates else Load(), Workload(turns=2), slo, rates)
    runs = []
    for n, rate in enumerate(rates or (load["rate"],)):
        own = records if records is not None else some_records(0.5 if n == 0 else 3.0)
        runs.append(Run(Load(**load | {"rate": rate}), summarise(own, slo), own))
    probe = Probe("tiny", ("tiny",), 1.25, 9, (f"a note {EVIL}",))
    return Result(settings, probe, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), runs, interrupted=False)


def store(found: Result, path: Path) -> str:
    path.write_text(json.dumps(as_json(found, "1.2.3")))
    return str(path)


def printed(table: RenderableType, width: int = 120) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# ---- JSON ----


def test_json_holds_everything_but_the_key() -> None:
    found = as_json(result(), "1.2.3")
    text = json.dumps(found)
    assert KEY not in text
    assert (found["format"], found["kvtrove"], found["started"]) == (FORMAT, "1.2.3", "2026-01-02T03:04:05+00:00")
    assert found["settings"]["load"]["seed"] == 5
    assert found["sustained_rate"] is None  # 88 % are inside, 90 % are asked for
    [run] = found["runs"]
    assert run["counts"] | {"sent": 122, "completed": 120, "failed": 1, "abandoned": 1, "late": 12} == run["counts"]
    assert run["figures"]["slo_share"]["value"] == pytest.approx(108 / 122)
    assert run["figures"]["slo_share"]["error"] > 0
    assert run["turns"][1]["cached_share"] == pytest.approx(0.45)
    assert [row["status"] for row in run["errors"]] == ["http 429", "timeout"]
    assert len(run["requests"]) == 123
    first, second = run["requests"][:2]
    assert (first["warmup"], second["warmup"]) == (True, False)
    assert (second["turn"], second["ttft"], second["tpot"], second["output_tokens"]) == (1, 2.0, pytest.approx(0.02), 5)
    assert (second["within_slo"], run["requests"][3]["within_slo"]) == (False, True)


def test_a_stored_result_comes_back(tmp_path: Path) -> None:
    found = result()
    stored = read(store(found, tmp_path / "a.json"))
    assert stored.runs[0].figures == found.runs[0].summary.figures
    assert stored.settings["workload.turns"] == 2
    assert stored.settings["model"] == "tiny"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops", "cannot read"),
        ("[1]", r"is no result of `kvtrove bench ... --json`"),
        ('{"format": "kvtrove-bench/9"}', "is no result of"),
        (json.dumps({"format": FORMAT, "runs": [{}]}), "is damaged: KeyError"),
    ],
)
def test_what_is_no_result_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(str(path))
    with pytest.raises(ConfigError, match="cannot read"):
        read(str(tmp_path / "missing.json"))


# ---- comparison ----


def side(found: Result, path: Path) -> Side:
    return Side.of(store(found, path))


def test_a_faster_run_is_seen_and_an_equal_one_the_same(tmp_path: Path) -> None:
    slow, fast = (side(result(some_records(t)), tmp_path / f"{t}.json") for t in (0.6, 0.5))
    [both], [equal] = pairs(slow, fast), pairs(slow, slow)
    verdicts = {change.name: change.verdict for change in compare(both)}
    assert verdicts["ttft_p50"] == "unsure", "one run of each"
    assert verdicts["tpot_p50"] == "same"
    assert {change.verdict for change in compare(equal)} == {"same"}


def test_runs_of_a_sweep_are_compared_by_rate(tmp_path: Path) -> None:
    one = side(result(rates=(1, 2)), tmp_path / "a.json")
    other = side(result(rates=(2, 4)), tmp_path / "b.json")
    assert [(both.before[0].rate, both.after[0].rate) for both in pairs(one, other)] == [(2, 2)]
    third = side(result(rates=(8, 9)), tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"nothing in common: 1 arrivals/s .* and 8 arrivals/s"):
        comparison_table(one, third)


def test_settings_that_differ_are_shown_first(tmp_path: Path) -> None:
    one, other = (side(result(rate=rate, seed=int(rate)), tmp_path / f"{rate}.json") for rate in (2.0, 4.0))
    assert differences(one, other) == [("load.rate", 2.0, 4.0)]  # another seed is no other test
    text = printed(comparison_table(one, other))
    assert text.startswith("not the same: load.rate was 2.0, is 4.0\n")


def test_the_comparison_names_measure_change_and_spread(tmp_path: Path) -> None:
    slow, fast = (side(result(some_records(t)), tmp_path / f"{t}.json") for t in (0.6, 0.5))
    lines = printed(comparison_table(slow, fast), 200).splitlines()
    [line] = [line.split() for line in lines if line.startswith("TTFT p50")]
    assert line[2:] == ["603", "ms", "503", "ms", "-16.6", "%", "±", line[9], "%", "unsure"]
    [share] = [line for line in lines if line.startswith("prompt tokens from the cache")]
    assert "+0.0 points" in share
    assert lines[-1].startswith("spread: what chance may do within a run. One run of each side cannot show")


def test_folders_are_sides_of_runs_in_turn(tmp_path: Path) -> None:
    found = as_json(result(), "1.2.3")
    for name, ttft in (("a", 0.6), ("b", 0.5)):
        (tmp_path / name).mkdir()
        for number in range(ENOUGH):
            found["started"] = datetime(2026, 1, 2, 3, 4, 2 * number + (name == "b"), tzinfo=UTC).isoformat()
            found["settings"]["load"]["requests"] = 62 + (number == 3)
            found["runs"][0]["figures"]["ttft_p50"] = {"value": ttft + number / 1e4, "error": 0.1}
            (tmp_path / name / f"{9 - number}.json").write_text(json.dumps(found))
    table = comparison_table(Side.of(str(tmp_path / "a")), Side.of(str(tmp_path / "b")))
    lines = printed(table, 200).splitlines()
    assert lines[0] == "not the same: load.requests was 62 and 63, is 62 and 63"
    assert [line.split()[-1] for line in lines if line.startswith("TTFT p50")] == ["better"]
    assert "spread: what chance may do, by 6 pairs of runs in turn" in lines[-1]
    with pytest.raises(ConfigError, match="hold 6 and 1 results"):
        comparison_table(Side.of(str(tmp_path / "a")), Side.of(str(tmp_path / "b/9.json")))
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"none holds no \.json"):
        Side.of(str(tmp_path / "none"))


def test_every_figure_has_a_name_and_a_unit() -> None:
    figures = result().runs[0].summary.figures
    assert set(figures) == set(names())
    assert all(label(name) and shown(name, 0.5)[-1] in "s%" for name in figures)
    assert [shown(name, None) for name in ("ttft_p50", "goodput", "slo_share")] == ["-"] * 3


# ---- tables ----


def test_the_table_tells_the_run() -> None:
    text = printed(result_table(result()))
    for line in (
        "tiny at http://127.0.0.1:8000/v1, chat",
        "2 arrivals/s (poisson), seed 5",
        "122 requests in 66 s: 120 completed, 1 failed, 1 abandoned; 1 more for warm-up, not measured",
        "inside TTFT ≤ 1 s and TPOT ≤ 50 ms, 12 late, 1 abandoned",
        "sessions/s with every turn inside the SLO",
        "30.0 % of the prompt tokens were cached",
        "  by turn   1: 0.0 %, 2: 45.0 %",
        f"note: a note {EVIL}",  # as it is: markup of others is text
    ):
        assert line in text, line
    assert KEY not in text


def test_the_table_shows_errors_and_unfinished_requests() -> None:
    records = [*some_records(), record(70, [], 70, status=UNFINISHED)]
    text = printed(result_table(result(records)))
    assert "1 unfinished" in text
    assert f"http 429         1  {EVIL}" in text


def test_a_sweep_ends_with_its_verdict() -> None:
    low, high = some_records(0.5), some_records(3.0)
    good = [r for r in low if r.ok and (r.ttft or 0) < 1]
    found = result(rates=(1, 2))
    slo = found.settings.slo
    runs = [Run(Load(rate=1), summarise(good, slo), good), Run(Load(rate=2), summarise(high, slo), high)]
    both = Result(found.settings, found.probe, found.started, runs, False)
    assert "1 arrivals/s is the highest rate that keeps 90 % of the requests inside TTFT" in printed(result_table(both))
    none = Result(found.settings, found.probe, found.started, runs[1:], False)
    assert "no rate that was tried keeps 90 %" in printed(result_table(none))
    every = Result(found.settings, found.probe, found.started, runs[:1], False)
    assert "try higher ones to find the limit" in printed(result_table(every))


# ---- page ----


class Outline(HTMLParser):
    """Checks that tags are closed in order; collects what would load something, and the text."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(found: Result) -> Outline:
    parser = Outline()
    parser.feed(page(found))
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_needs_nothing_else_and_runs_nothing() -> None:
    found = outline(result())
    assert found.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.seen)
    assert "url(" not in page(result())
    assert f"a note {EVIL}" in found.text  # shown, not run
    assert EVIL in found.text
    assert KEY not in found.text


def test_the_page_has_every_chart_and_figure() -> None:
    found = outline(result())
    assert found.seen.count("svg") == 5
    for text in ("Time to first token", "Time per output token", "Requests under way", "Prompt tokens from the cache"):
        assert text in found.text, text
    assert "88.5 %" in found.text
    assert "SLO 1 s" in found.text


def test_the_page_of_a_sweep_compares_its_rates() -> None:
    found = outline(result(rates=(1, 2)))
    assert "no rate that was tried keeps 90 % of the requests inside TTFT ≤ 1 s" in found.text
    assert "Share of requests inside the SLO" in found.text
    assert found.seen.count("svg") == 2 + 5 + 5


@pytest.mark.parametrize(
    "records",
    [
        [],
        [steady(0, 0.5, 0.1, 3, warmup=True)],
        [record(0, [], status="http 500", error="oops")],
        [record(0, [(0.0, 1)])],
        [steady(0, 0.5, 0.1, 3)],
        [steady(0, 0.5, 0.0, 3), record(1, [], 1, status="http 500")],
    ],
    ids=[
        "nothing sent",
        "only warm-up",
        "nothing answered",
        "one token at once",
        "one request",
        "no time between tokens",
    ],
)
def test_the_page_copes_with_little(records: list[Record]) -> None:
    found = outline(result(records))
    assert "nan" not in found.text.lower()
    assert json.dumps(as_json(result(records), "1.2.3"), allow_nan=False)
    assert ("every request was warm-up" in printed(result_table(result(records)))) is any(r.warmup for r in records)
