"""Faults seen from outside: whoever is at fault gets a 500 or an error event, everyone else the usual answer."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.server.metrics import Metrics, metrics_router
from kvtrove.server.metrics_facts import Facts
from kvtrove.server.observer import Arrival, Observer
from tests.faults import Faults, raising
from tests.server.in_process import App, running_app

CULPRIT = 13  # the seed of whoever is at fault
HELLO = [{"role": "user", "content": "Tell me about the sea."}]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "logprobs": 2}),
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "stream": True}),
    ("/v1/completions", {"prompt": "The sea", "max_tokens": 9, "use_beam_search": True, "n": 2, "temperature": 0}),
    ("/v1/completions", {"prompt": "The sea", "max_tokens": 9, "n": 3, "seed": 5}),
    ("/v1/completions", {"prompt": "Yes or no?", "temperature": 0, "guided_choice": ["yes, of course", "no, never"]}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12, "temperature": 0, "stream": True}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 12, "temperature": 0}),
]


class Blame(Observer):
    """Tells `faults` whose engine request it is that was sent with the culprit's seed."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def on_arrival(self, arrival: Arrival) -> None:
        if getattr(arrival.body, "seed", None) == CULPRIT:
            self.faults.culprit = arrival.requests[0].id


def said(text: str) -> Any:
    """What an answer or a stream says, without ids and times."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")] or [text]
    kept = ("choices", "content", "delta", "error")
    return [{key: value for key, value in json.loads(line).items() if key in kept} for line in lines]


def answered(text: str) -> Any:
    """`said`, with the pieces of a stream in one: how many tokens an event carries is a matter of time."""
    events = said(text)
    if not text.startswith("data: "):
        return events
    choices = [choice for event in events for choice in event.get("choices", [])]
    pieces = [choice.get("text", "") or choice.get("delta", {}).get("content", "") for choice in choices]
    return "".join(pieces), choices[-1]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["model", "append", "nan"])
def test_others_get_their_answers_and_the_culprit_an_error(
    stage: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(EngineConfig(str(demo_model_dir()), num_blocks=300, seed=1))
    metrics = Metrics(Facts.of(engine, "demo"), vllm_names=False)

    async def others(app: App) -> list[Any]:
        answers = await asyncio.gather(*(app.client.post(route, json=body) for route, body in OTHERS))
        assert {answer.status_code for answer in answers} == {200}
        return [answered(answer.text) for answer in answers]

    async def scenario(faults: Faults) -> None:
        async with running_app(engine, observers=[Blame(faults), metrics]) as app:  # type: ignore[arg-type]
            app.app.include_router(metrics_router(metrics))
            usual = await others(app)
            engine.reset_prefix_cache()
            faults.arm(stage, raising(MemoryError), "")
            body = {
                "prompt": "Who?",
                "seed": CULPRIT,
                "max_tokens": 20,
                "ignore_eos": True,
                "stream": stream,
                "temperature": 0,
            }
            beside = asyncio.ensure_future(others(app))
            answer = await app.client.post("/v1/completions", json=body, headers={"x-request-id": "the-culprit"})
            assert await beside == usual
            assert answer.headers["x-request-id"] == "the-culprit"
            assert answer.status_code == (200 if stream else 500)
            [*_, error] = said(answer.text)
            assert error["error"]["code"] == "engine_error"
            assert ("not finite" if stage == "nan" else "MemoryError") in error["error"]["message"]
            assert (await app.client.get("/health")).json()["status"] == "ready"
            faults.disarm()
            assert (await app.complete(max_tokens=3)).status_code == 200
            scraped = (await app.client.get("/metrics")).text
            failed = 0.0 if stage == "nan" else 1.0
            assert f"kvtrove_engine_failed_requests_total {failed}" in scraped
            assert "kvtrove_engine_degraded 0.0" in scraped
        stats = engine.kv.stats()
        assert stats.free + stats.cached == stats.num_blocks

    with caplog.at_level(logging.ERROR), Faults(engine) as faults:
        asyncio.run(scenario(faults))
    assert "the-culprit" in caplog.text


def test_health_says_degraded_while_a_fault_is_being_found() -> None:
    engine = Engine(EngineConfig(str(demo_model_dir()), num_blocks=300, linear="torch"))
    seen: set[tuple[str, int]] = set()

    async def scenario(faults: Faults) -> None:
        async with running_app(engine, observers=[Blame(faults)]) as app:  # type: ignore[arg-type]
            faults.arm("model", raising(RuntimeError), "")
            bodies = [{"seed": CULPRIT + i, "max_tokens": 30} for i in range(6)]
            asked = asyncio.gather(*(app.complete(**body) for body in bodies))
            while not asked.done():
                health = await app.client.get("/health")
                seen.add((health.json()["status"], health.status_code))
            assert sorted(answer.status_code for answer in await asked) == [200] * 5 + [500]

    with Faults(engine) as faults:
        asyncio.run(scenario(faults))
    assert seen == {("ready", 200), ("degraded", 200)}
