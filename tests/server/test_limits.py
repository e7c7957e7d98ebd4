"""Limits, timeouts and the engine's death, on a fake engine whose speed and faults the test chooses."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

import pytest

from kvtrove.server.auth import Keyring, Tenant
from kvtrove.server.settings import Limits
from tests.server.fake_engine import FakeEngine
from tests.server.in_process import App, Connection, running_app


def test_more_requests_than_may_be_in_flight_are_told_to_come_back() -> None:
    async def scenario() -> None:
        async with running_app(FakeEngine(0.005), limits=Limits(max_concurrent=3)) as app:
            running = [asyncio.ensure_future(app.complete(max_tokens=40)) for _ in range(3)]
            await app.until(lambda: app.service.admission.num_in_flight == 3)
            refused = await app.complete()
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
            assert (await app.complete(max_tokens=1)).status_code == 200

    asyncio.run(scenario())


def test_a_full_queue_sheds_load_and_keeps_the_latency_of_those_inside() -> None:
    """Forty at once on an engine for two: those who get in take no longer than the queue in front of them."""

    async def timed(app: App) -> tuple[int, float]:
        start = time.monotonic()
        answer = await app.complete(max_tokens=50)
        return answer.status_code, time.monotonic() - start

    async def scenario() -> None:
        async with running_app(FakeEngine(0.004, seats=2), limits=Limits(max_queue=4)) as app:
            alone = [await timed(app) for _ in range(3)]
            first = asyncio.gather(*(timed(app) for _ in range(6)))
            await app.until(lambda: app.service.engine.stats.num_waiting == 4)
            late = await asyncio.gather(*(timed(app) for _ in range(34)))
            served = await first
            assert {status for status, _ in late} <= {429, 200}
            assert [status for status, _ in late].count(429) > 5
            assert {status for status, _ in served} == {200}
            each = statistics.median(seconds for _, seconds in alone)
            assert max(seconds for _, seconds in served) < 8 * each, "two seats, four waiting: three rounds"

    asyncio.run(scenario())


def test_a_burst_does_not_pass_the_limit_of_the_queue() -> None:
    """All at once, so none of them is in the engine when the next one asks: two run, four wait, no other comes in."""

    async def scenario() -> None:
        async with running_app(FakeEngine(0.002, seats=2), limits=Limits(max_queue=4)) as app:
            answers = await asyncio.gather(*(app.complete(max_tokens=200) for _ in range(40)))
            assert [answer.status_code for answer in answers].count(200) == 6
            assert {answer.status_code for answer in answers} == {200, 429}
            many = {"prompt": ["x"] * 9, "max_tokens": 30}
            alone = await app.client.post("/v1/completions", json=many)
            assert alone.status_code == 200, "a request of many prompts may wait for itself"
            first = asyncio.gather(*(app.complete(max_tokens=200) for _ in range(4)))
            await app.until(lambda: app.service.engine.stats.num_waiting == 2)
            assert (await app.client.post("/v1/completions", json=many)).status_code == 429
            assert {answer.status_code for answer in await first} == {200}
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())


def test_a_tenant_has_its_own_limit() -> None:
    keys = Keyring([("a" * 16, Tenant("a", max_concurrent=1)), ("b" * 16, Tenant("b"))])

    async def scenario() -> None:
        async with running_app(FakeEngine(0.005), keyring=keys) as app:

            def ask(key: str) -> Any:
                return app.client.post(
                    "/v1/completions", json={"prompt": "x"}, headers={"authorization": f"Bearer {key * 16}"}
                )

            first = asyncio.ensure_future(ask("a"))
            await app.until(lambda: app.service.admission.num_in_flight == 1)
            assert (await ask("a")).status_code == 429
            assert (await ask("b")).status_code == 200
            assert (await first).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_stopped(stream: bool) -> None:
    async def scenario() -> None:
        async with running_app(FakeEngine(0.01), limits=Limits(request_timeout=0.1)) as app:
            answer = await app.complete(max_tokens=4000, stream=stream)
            if stream:
                assert answer.status_code == 200
                *_, error, done = answer.text.strip().split("\n\n")
                assert done == "data: [DONE]"
                body = json.loads(error[6:])
            else:
                assert answer.status_code == 408
                body = answer.json()
            assert body["error"]["code"] == "request_timeout"
            await app.until(lambda: not app.engine.has_unfinished_requests())
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())


def test_a_body_that_trickles_in_is_given_up() -> None:
    async def scenario() -> None:
        async with running_app(limits=Limits(idle_timeout=0.05)) as app:
            slow = Connection(app.app, "/v1/completions", b'{"prompt"', more_body=True)
            await slow.run()
            assert slow.status == 408
            assert "did not arrive" in slow.text

    asyncio.run(scenario())


def test_a_client_that_stops_reading_is_given_up_and_stalls_nobody() -> None:
    async def scenario() -> None:
        async with running_app(FakeEngine(0.001), limits=Limits(idle_timeout=0.1)) as app:
            body = json.dumps({"prompt": "x", "max_tokens": 4000, "stream": True}).encode()
            stalled = Connection(app.app, "/v1/completions", body)
            task = asyncio.ensure_future(stalled.run())
            await app.until(lambda: len(stalled.sent) > 3)
            stalled.reading.clear()
            before = app.engine.steps
            assert (await app.complete(max_tokens=30)).status_code == 200
            assert app.engine.steps >= before + 30, "the engine went on"
            await asyncio.wait_for(task, 2)
            await app.until(lambda: not app.engine.has_unfinished_requests())
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_aborts_before_the_next_step(stream: bool) -> None:
    async def scenario() -> None:
        async with running_app(FakeEngine(0.02)) as app:
            body = json.dumps({"prompt": "x", "max_tokens": 4000, "stream": stream}).encode()
            leaver = Connection(app.app, "/v1/completions", body)
            task = asyncio.ensure_future(leaver.run())
            await app.until(lambda: app.engine.steps >= 2)
            leaver.hang_up()
            at = app.engine.steps
            await asyncio.wait_for(task, 2)
            await app.until(lambda: not app.engine.has_unfinished_requests())
            assert app.engine.steps <= at + 2, "the step that ran, and at most the one that had begun meanwhile"
            assert [what for what, _ in app.engine.log] == ["add", "abort"]

    asyncio.run(scenario())


def test_a_large_body_does_not_hold_up_the_engine() -> None:
    """While a body of megabytes is read and refused, a running stream goes on step by step."""
    gaps: list[float] = []
    longest: list[float] = []
    last = [0.0]

    def mark() -> None:
        now = time.monotonic()
        gaps.append(now - last[0])
        last[0] = now

    async def scenario() -> None:
        async with running_app(FakeEngine(0.002, before_step=mark)) as app:
            running = asyncio.ensure_future(app.complete(max_tokens=200))
            await app.until(lambda: app.engine.steps > 10)
            json_header = {"content-type": "application/json"}
            for large in ({"prompt": "word " * 600_000}, {"prompt": "x", "unknown": ["y" * 10] * 200_000}):
                body = json.dumps(large).encode()
                gaps.clear()
                answer = await app.client.post("/v1/completions", content=body, headers=json_header)
                assert answer.status_code in (200, 400)
                longest.append(max(gaps))
            assert (await running).status_code == 200

    asyncio.run(scenario())
    assert max(longest) < 0.5, "parsing holds the interpreter for a moment, tokenising does not"


@pytest.mark.parametrize("stream", [False, True])
def test_when_a_step_fails_everyone_is_told_and_the_process_answers(stream: bool) -> None:
    engine = FakeEngine(0.001)

    def fail() -> None:
        if engine.steps == 5:
            raise RuntimeError("secret details of the fault")

    engine.before_step = fail

    async def scenario() -> None:
        async with running_app(engine) as app:
            answers = await asyncio.gather(*(app.complete(max_tokens=100, stream=stream) for _ in range(3)))
            for answer in answers:
                assert answer.status_code == (200 if stream else 500)
                assert '"code":"engine_error"' in answer.text.replace(": ", ":")
                assert "secret details" not in answer.text
            health = await app.client.get("/health")
            assert (health.status_code, health.json()["live"]) == (503, False)
            assert (await app.client.get("/health/live")).status_code == 503
            late = await app.complete()
            assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_dead")
            assert (await app.client.get("/v1/models")).status_code == 200
            assert app.service.admission.num_in_flight == 0

    asyncio.run(scenario())


def test_what_the_engine_refuses_is_a_400_for_all_prompts_of_the_request() -> None:
    async def scenario() -> None:
        async with running_app() as app:
            refused = await app.complete(prompt=[[1, 2], [3, 13]], stream=True)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
            await app.until(lambda: not app.engine.has_unfinished_requests())
            assert (await app.complete(prompt=[[1, 2], [3, 4]])).status_code == 200

    asyncio.run(scenario())


def test_limits_of_prompts() -> None:
    async def scenario() -> None:
        async with running_app(limits=Limits(max_prompts=2, max_prompt_tokens=8)) as app:
            many = await app.complete(prompt=["a", "b", "c"])
            assert (many.status_code, many.json()["error"]["param"]) == (400, "prompt")
            long = await app.complete(prompt=[1] * 9)
            assert long.json()["error"]["code"] == "context_length_exceeded"
            assert (await app.complete(prompt=[1] * 8)).status_code == 200

    asyncio.run(scenario())
