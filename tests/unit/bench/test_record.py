"""The latencies of one request, on timelines written by hand."""

from __future__ import annotations

import pytest

from tests.unit.bench.records import record, steady


def test_one_token_per_chunk() -> None:
    """Due at 10, sent at 10.1; tokens at 10.5, 10.6, 10.9: TTFT 0.5, E2E 0.9, TPOT (0.9 - 0.5) / 2."""
    found = record(10.0, [(0.5, 1), (0.6, 1), (0.9, 1)], sent=10.1)
    assert found.ttft == pytest.approx(0.5)
    assert found.e2e == pytest.approx(0.9)
    assert found.tpot == pytest.approx(0.2)
    assert found.gaps == pytest.approx([0.1, 0.3])
    assert found.pause == pytest.approx(0.3)
    assert found.lag == pytest.approx(0.1)
    assert found.output_tokens == 3


def test_several_tokens_in_a_chunk_share_its_gap() -> None:
    """4 tokens after 0.4 s are four gaps of 0.1 s: ITL weighs tokens, the longest pause does not."""
    found = record(0.0, [(1.0, 1), (1.4, 4), (1.6, 1)])
    assert found.gaps == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2])
    assert found.tpot == pytest.approx(0.6 / 5)
    assert found.pause == pytest.approx(0.4)


def test_tokens_that_came_with_the_first_have_no_gap() -> None:
    """Counting them would divide 0.4 s by 5 where 2 gaps were seen."""
    found = record(0.0, [(1.0, 4), (1.2, 1), (1.4, 1)])
    assert found.tpot == pytest.approx(0.2)
    assert found.gaps == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("chunks", [[(1.0, 1)], [(1.0, 9)]])
def test_an_answer_at_one_time_has_no_time_per_token(chunks: list[tuple[float, int]]) -> None:
    found = record(0.0, chunks)
    assert (found.tpot, found.pause, len(found.gaps)) == (None, None, 0)
    assert found.ttft == found.e2e == 1.0


def test_no_answer_has_no_latency() -> None:
    found = record(0.0, [], status="http 500")
    assert (found.ttft, found.e2e, found.tpot, found.pause, found.output_tokens) == (None,) * 4 + (0,)


def test_the_mean_gap_is_the_time_per_token() -> None:
    found = steady(3.0, ttft=0.25, gap=0.125, tokens=9)
    assert found.tpot == found.gaps.mean() == 0.125
