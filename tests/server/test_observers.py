"""What hangs on: observers hear of every request, and what goes wrong in one harms nobody. And the log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from kvtrove.server.auth import Keyring, Tenant
from kvtrove.server.logs import JsonFormatter, TextFormatter
from kvtrove.server.observer import Arrival, Departure, Observer
from tests.server.fake_engine import FakeEngine
from tests.server.in_process import Connection, running_app

KEY = "k" * 16


class Recorder(Observer):
    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.departures: list[Departure] = []
        self.errors: list[tuple[str, int, str]] = []
        self.steps = 0

    def on_arrival(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)

    def on_step(self, step: Any) -> None:
        self.steps += 1

    def on_departure(self, departure: Departure) -> Mapping[str, Any]:
        self.departures.append(departure)
        return {"noted": len(departure.results)}

    def on_error(self, route: str, status: int, code: str) -> None:
        self.errors.append((route, status, code))


class Broken(Observer):
    def on_arrival(self, arrival: Arrival) -> None:
        raise RuntimeError("broken")

    on_step = on_departure = on_arrival  # type: ignore[assignment]


def test_observers_hear_of_everything_and_their_notes_reach_the_answer() -> None:
    seen = Recorder()

    async def scenario() -> None:
        keys = Keyring([(KEY, Tenant("a", "salt"))])
        async with running_app(observers=[Broken(), seen], keyring=keys) as app:
            app.client.headers["x-api-key"] = KEY
            plain = await app.complete(prompt=["one", "two"], max_tokens=3)
            assert plain.json()["kvtrove"] == {"noted": 2}
            streamed = await app.complete(max_tokens=2, stream=True)
            *_, last, done = streamed.text.strip().split("\n\n")
            assert json.loads(last[6:])["kvtrove"] == {"noted": 1}
            assert done == "data: [DONE]"
            await app.client.get("/nothing")
            await app.complete(max_tokens=0)

    asyncio.run(scenario())
    first, second = seen.arrivals
    assert [len(a.requests) for a in (first, second)] == [2, 1]
    assert (first.route, first.tenant.name, first.requests[0].salt) == ("/v1/completions", "a", "salt")
    assert first.body.prompt == ["one", "two"]
    assert seen.departures[0].arrival is first
    assert [(r.output_tokens, r.finish_reasons) for r in seen.departures[0].results] == [(3, ["length"])] * 2
    assert [d.error for d in seen.departures] == [None, None]
    assert seen.departures[0].time >= first.time
    assert seen.steps == 5
    assert seen.errors == [("", 404, "not_found"), ("/v1/completions", 400, "invalid_value")]


def test_a_client_that_left_is_recorded_as_such() -> None:
    seen = Recorder()

    async def scenario() -> None:
        async with running_app(FakeEngine(0.01), observers=[seen]) as app:
            body = json.dumps({"prompt": "x", "max_tokens": 4000, "stream": True}).encode()
            leaver = Connection(app.app, "/v1/completions", body)
            task = asyncio.ensure_future(leaver.run())
            await app.until(lambda: app.engine.steps > 2)
            leaver.hang_up()
            await task

    asyncio.run(scenario())
    [departure] = seen.departures
    assert departure.error == "client_gone"
    assert departure.results[0].output_tokens > 0


def record(message: str, **facts: Any) -> logging.LogRecord:
    made = logging.LogRecord("kvtrove.x", logging.INFO, "", 0, message, (), None)
    made.facts = facts
    return made


def test_a_json_line_holds_the_facts_and_stays_a_line() -> None:
    line = JsonFormatter().format(record("hello\nworld\x1b[2J", request_id="r1", seconds=0.5))
    assert "\n" not in line
    assert "\x1b" not in line
    read = json.loads(line)
    assert (read["message"], read["request_id"], read["seconds"], read["level"]) == (
        "hello\nworld\x1b[2J",
        "r1",
        0.5,
        "info",
    )


def test_a_text_line_names_the_request_and_moves_no_cursor() -> None:
    line = TextFormatter().format(record("GET /a\nfake line\x1b[2J", request_id="r1"))
    assert "[r1] GET /a\\nfake line\\x1b[2J" in line
    assert "\n" not in line
