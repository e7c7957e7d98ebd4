"""Figures over requests, checked exactly on event lists written by hand."""

from __future__ import annotations

import math

import pytest

from kvtrove.bench.measures import ErrorRow, by_turn, cached_share, count, errors, figures, span, within
from kvtrove.bench.record import TIMEOUT, UNFINISHED, Record
from kvtrove.bench.settings import Slo
from kvtrove.bench.summary import GROUPS, LEAST_RECORDS, standard_errors, summarise
from tests.unit.bench.records import record, steady

SLO = Slo(ttft=1.0, tpot=0.1)
NONE = Slo()


def of(name: str, records: list[Record], slo: Slo = NONE, seconds: float = 10.0) -> float | None:
    return figures(records, slo, seconds)[name]


# ---- latencies ----


def test_percentiles_lie_linearly_between_the_nearest_values() -> None:
    """101 requests with TTFT 0..100 ms: percentile q is q ms; of two values, p90 is nine tenths of the way."""
    many = [steady(0.0, ttft=n / 1000, gap=0, tokens=1, conversation=n) for n in range(101)]
    for q in (50, 90, 95, 99):
        assert of(f"ttft_p{q}", many) == pytest.approx(q / 1000)
    assert of("ttft_max", many) == pytest.approx(0.1)
    assert of("ttft_mean", many) == pytest.approx(0.05)
    two = [steady(0.0, ttft=ttft, gap=0, tokens=1) for ttft in (1.0, 2.0)]
    assert of("ttft_p90", two) == pytest.approx(1.9)


def test_tpot_weighs_requests_and_itl_weighs_tokens() -> None:
    """A short slow answer and a long fast one: half of the requests are slow, but only 1 gap of 100."""
    found = [steady(0, 0.1, gap=1.0, tokens=2), steady(0, 0.1, gap=0.01, tokens=100)]
    assert of("tpot_mean", found) == pytest.approx((1.0 + 0.01) / 2)
    assert of("itl_mean", found) == pytest.approx((1.0 + 99 * 0.01) / 100)
    assert of("itl_p50", found) == pytest.approx(0.01)
    assert of("itl_max", found) == pytest.approx(1.0)


def test_failed_requests_have_no_latency_but_their_lag_counts() -> None:
    bad = record(0.0, [(5.0, 1)], status="http 500", sent=0.5)
    found = [steady(0, 0.1, 0.1, 3), bad]
    assert of("ttft_max", found) == pytest.approx(0.1)
    assert of("lag_max", found) == pytest.approx(0.5)


def test_nothing_measured_is_none_not_zero() -> None:
    found = figures([], SLO, 0.0)
    assert set(found.values()) == {None}
    assert of("tpot_p50", [steady(0, 0.1, 0, 1)]) is None


# ---- rates and shares ----


def test_rates_are_per_second_of_the_whole_run() -> None:
    found = [steady(n, 0.1, 0.1, tokens=10, conversation=n, prompt_tokens=100) for n in range(5)]
    assert of("request_rate", found) == 0.5
    assert of("output_rate", found) == 5.0
    assert of("input_rate", found) == 50.0


def test_the_run_lasts_from_the_first_arrival_to_the_last_end() -> None:
    assert span([steady(2.0, 0.5, 0.5, 3), steady(4.0, 0.5, 0.25, 3)]) == pytest.approx(5.0 - 2.0)
    assert span([]) == 0.0


def test_cached_share_is_of_tokens_and_of_requests_that_tell() -> None:
    told = [
        record(0, [(1, 1)], prompt_tokens=100, cached_tokens=90),
        record(0, [(1, 1)], prompt_tokens=300, cached_tokens=10),
    ]
    silent = record(0, [(1, 1)], prompt_tokens=1000)
    assert cached_share([*told, silent]) == 0.25
    assert cached_share([silent]) is None


def test_by_turn_follows_the_conversation() -> None:
    found = [
        record(0, [(0.5, 1)], 0, 0, 2, prompt_tokens=100, cached_tokens=0),
        record(1, [(0.1, 1)], 0, 1, 2, prompt_tokens=200, cached_tokens=150),
        record(0, [(0.7, 1)], 1, 0, 2, prompt_tokens=100, cached_tokens=50),
        record(1, [], 1, 1, 2, status="http 500"),
    ]
    first, second = by_turn(found)
    assert (first.turn, first.requests, first.prompt_tokens, first.cached_share) == (1, 2, 100, 0.25)
    assert first.ttft_p50 == pytest.approx(0.6)
    assert (second.turn, second.requests, second.prompt_tokens, second.cached_share) == (2, 1, 200, 0.75)


# ---- goodput ----

GOOD = steady(0, 0.5, 0.05, 3, conversation=0)
LATE_START = steady(1, 1.5, 0.05, 3, conversation=1)
SLOW = steady(2, 0.5, 0.2, 3, conversation=2)
BOTH = steady(3, 1.5, 0.2, 3, conversation=3)
SHORT = steady(4, 0.5, 0.0, 1, conversation=4)
FAILED = record(5, [], 5, status="http 429", error="busy")
ABANDONED = record(6, [(0.5, 1)], 6, status=TIMEOUT)
CUT = record(7, [(0.5, 1)], 7, status=UNFINISHED)
ALL = [GOOD, LATE_START, SLOW, BOTH, SHORT, FAILED, ABANDONED, CUT]


def test_a_request_is_inside_the_slo_when_both_limits_hold() -> None:
    assert [within(r, SLO) for r in ALL] == [True, False, False, False, True, False, False, False]
    assert [within(r, Slo(ttft=1.0)) for r in ALL[:5]] == [True, False, True, False, True]
    assert [within(r, Slo(tpot=0.1)) for r in ALL[:5]] == [True, True, False, False, True]


def test_a_limit_that_is_met_exactly_is_met() -> None:
    assert within(record(0, [(1.0, 1), (1.5, 1)]), Slo(ttft=1.0, tpot=0.5))


def test_counts_separate_late_failed_abandoned_and_unfinished() -> None:
    found = count(ALL, SLO)
    assert (found.sent, found.completed, found.failed, found.abandoned, found.unfinished) == (8, 5, 1, 1, 1)
    assert (found.within, found.late) == (2, 3)
    assert found.sent == found.completed + found.failed + found.abandoned + found.unfinished


def test_goodput_counts_what_was_inside_and_its_share_counts_what_failed() -> None:
    """2 good of 7: failing or abandoning requests must not make the share better. What was cut off is not judged."""
    found = figures(ALL, SLO, seconds=10)
    assert found["goodput"] == 0.2
    assert found["slo_share"] == pytest.approx(2 / 7)
    assert found["slo_ttft_share"] == pytest.approx(3 / 7)
    assert found["slo_tpot_share"] == pytest.approx(3 / 7)
    assert found["request_rate"] == 0.5


def test_without_an_slo_there_is_no_goodput() -> None:
    assert not {"goodput", "slo_share", "session_goodput"} & set(figures(ALL, NONE, 10))


def test_a_session_is_good_when_every_turn_is_there_and_inside() -> None:
    def turn(conversation: int, number: int, good: bool = True, status: str = "ok") -> Record:
        return steady(number, 0.5 if good else 2.0, 0.05, 3, conversation, turn=number, num_turns=2, status=status)

    sessions = [
        *(turn(0, 0), turn(0, 1)),
        *(turn(1, 0), turn(1, 1, good=False)),
        turn(2, 0, status="http 500"),  # its second turn was never sent
        *(turn(3, 0), turn(3, 1, status=UNFINISHED)),
    ]
    found, counts = figures(sessions, SLO, seconds=4), count(sessions, SLO)
    assert (counts.sessions, counts.sessions_completed, counts.sessions_within) == (4, 2, 1)
    assert found["session_rate"] == 0.5
    assert found["session_goodput"] == 0.25
    assert found["session_slo_share"] == pytest.approx(1 / 3)  # the unfinished one is not judged


def test_errors_are_counted_by_status_with_the_first_message() -> None:
    found = [record(n, [], status="http 429", error=f"busy {n}") for n in range(3)]
    found += [record(9, [], status=TIMEOUT, error="too slow"), CUT, GOOD]
    assert errors(found) == [ErrorRow("http 429", 3, "busy 0"), ErrorRow(TIMEOUT, 1, "too slow")]


# ---- summary ----


def test_warmup_is_left_out_of_everything() -> None:
    warm = steady(0, 9.0, 1.0, 5, conversation=0, warmup=True)
    found = summarise([warm, steady(20, 0.5, 0.05, 3, conversation=1)], SLO)
    assert found.counts.sent == found.counts.completed == 1
    assert found.value("ttft_max") == pytest.approx(0.5)
    assert found.seconds == pytest.approx(0.6)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """With one request per stretch it must give what the textbook gives: deviation / sqrt(n)."""
    values = [0.1 + 0.01 * ((7 * n) % GROUPS) for n in range(GROUPS)]
    # two equal requests per stretch of one second, so that there are enough of them
    found = [steady(n + half, values[n], 0, 1, conversation=2 * n + half) for n in range(GROUPS) for half in (0, 0.5)]
    mean = sum(values) / GROUPS
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (GROUPS - 1))
    found_error = standard_errors(found, NONE, seconds=GROUPS)["ttft_mean"]
    assert found_error == pytest.approx(deviation / math.sqrt(GROUPS), rel=1e-6)


def test_a_steady_run_has_no_spread_and_a_maximum_never_has_one() -> None:
    found = [steady(n / 2, 0.25, 0.125, 5, conversation=n) for n in range(2 * GROUPS)]
    spread = standard_errors(found, SLO, seconds=GROUPS)
    assert spread["ttft_p50"] == spread["tpot_p99"] == spread["slo_share"] == 0
    assert spread["request_rate"] == pytest.approx(0)
    assert "ttft_max" not in spread


def test_few_requests_have_no_standard_error() -> None:
    found = [steady(n, 0.25, 0.125, 5, conversation=n) for n in range(LEAST_RECORDS - 1)]
    assert standard_errors(found, NONE, 40.0) == {}
    assert summarise(found, NONE).figures["ttft_p50"].error is None
