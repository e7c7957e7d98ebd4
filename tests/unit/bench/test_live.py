"""The progress bar's figures, on a clock that the test moves."""

from __future__ import annotations

import io

from rich.console import Console

from kvtrove.bench.live import RECENT, REDRAW_EVERY, Live
from kvtrove.bench.settings import Load
from tests.unit.bench.records import record, steady


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_figures_are_of_what_has_finished() -> None:
    clock = Clock()
    live = Live(enabled=False, clock=clock)
    live.begin(Load(rate=2), 10)
    assert live.figures() == "0 running"
    for _ in range(4):
        live.started()
    clock.now += 2
    for ttft in (0.1, 0.2, 0.3):
        live.finished(steady(0, ttft, 0.1, tokens=8))
    assert live.figures() == "1 running, 1.5 requests/s, 12 tokens/s, TTFT 200 ms"
    live.finished(record(0, [], status="http 500"))
    assert live.figures().endswith(", 1 failed")


def test_the_figures_follow_the_last_requests() -> None:
    """After a slow start, the rate of the last ones counts."""
    clock = Clock()
    live = Live(enabled=False, clock=clock)
    live.begin(Load(), None)
    clock.now += 1000
    for _ in range(RECENT + 1):
        live.started()
        clock.now += 0.5
        live.finished(steady(0, 0.1, 0.1, tokens=1))
    assert ", 2.01 requests/s," in live.figures()  # 200 of them in the last 99.5 s


def test_a_new_run_begins_at_zero() -> None:
    live = Live(enabled=False, clock=Clock())
    live.begin(Load(), 5)
    live.started()
    live.finished(record(0, [], status="http 500"))
    live.begin(Load(), 5)
    assert (live.done, live.failed, live.figures()) == (0, 0, "0 running")


def test_the_bar_is_drawn_now_and_then_and_taken_away_at_the_end() -> None:
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Live(enabled=True, clock=clock, console=console) as live:
        live.begin(Load(rate=2), 10)
        live.started()
        clock.now += REDRAW_EVERY
        live.finished(steady(0, 0.1, 0.1, tokens=8))
        drawn = screen.getvalue()
        assert "2 arrivals/s (poisson)" in drawn
        assert "1/10" in drawn
        assert "TTFT 100 ms" in drawn
        live.started()
        live.finished(steady(0, 0.1, 0.1, tokens=8))
        assert screen.getvalue() == drawn  # too soon after the last drawing
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared


def test_no_terminal_no_bar() -> None:
    with Live(enabled=True, clock=Clock()) as live:
        live.begin(Load(), 5)
        live.started()
        live.finished(steady(0, 0.1, 0.1, tokens=8))
    assert live.done == 1
