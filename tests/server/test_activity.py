"""Samples of the last minutes, with a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvtrove.request import SamplingParams
from kvtrove.server.activity import PERIOD, SAMPLES, Activity
from kvtrove.server.auth import Tenant
from kvtrove.server.observer import Arrival, Departure, PromptResult


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def arrival(name: str, tenant: str = "a", tokens: int = 40) -> Arrival:
    requests: Any = (SimpleNamespace(id=f"{name}-0", prompt_token_ids=[0] * tokens),)
    return Arrival(name, 0.0, "/v1/completions", Tenant(tenant), None, requests)


def departure(of: Arrival, cached: int = 32) -> Departure:
    return Departure(of, 1.0, (PromptResult(SamplingParams(), 40, cached, 7),))


def test_what_ends_is_in_the_sample_of_its_period() -> None:
    clock = Clock()
    activity = Activity(32, clock)
    one = arrival("one")
    activity.on_arrival(one)
    activity.on_departure(departure(one))
    clock.now += 2 * PERIOD
    first, second = activity.history()
    assert (first["requests"], first["prompt_tokens"], first["reused_tokens"], first["output_tokens"]) == (1, 40, 32, 7)
    assert (first["age"], second["age"], second["requests"]) == (PERIOD, 0.0, 0)
    assert first["ttft"] is None, "a request without times of its own has none"


def test_history_is_bounded_and_a_long_silence_costs_nothing() -> None:
    clock = Clock()
    activity = Activity(32, clock)
    clock.now += 10**9
    assert len(activity.history()) == SAMPLES


def test_tenants_see_their_own_and_administrators_all() -> None:
    activity = Activity(32, Clock())
    for name, tenant in (("one", "a"), ("two", "b")):
        activity.on_arrival(arrival(name, tenant))
    boss = Tenant("boss", admin=True)
    assert [one["tenant"] for one in activity.in_flight(Tenant("a"))] == ["a"]
    assert [one["tenant"] for one in activity.in_flight(boss)] == ["a", "b"]
    assert [(one["tenant"], one["blocks"]) for one in activity.tenants(boss)] == [("a", 2), ("b", 2)]
    activity.on_departure(departure(arrival("one")))
    assert [one["tenant"] for one in activity.in_flight(boss)] == ["b"]
