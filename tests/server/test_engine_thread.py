"""The line between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from kvtrove.request import RequestError, SamplingParams
from kvtrove.server.engine_thread import EngineRequest, EngineThread, OutputStream, Step
from kvtrove.server.errors import ApiError
from tests.server.fake_engine import FakeEngine


def request(name: str, tokens: int = 5, prompt: list[int] | None = None) -> EngineRequest:
    return EngineRequest(name, prompt or [1, 2, 3], SamplingParams(max_tokens=tokens, output_kind="delta"))


def run(engine: FakeEngine, scenario: Any) -> list[Step]:
    """Run scenario(thread) on an event loop; returns the steps that were reported."""
    steps: list[Step] = []

    async def main() -> None:
        thread = EngineThread(engine, steps.append)  # type: ignore[arg-type]
        thread.start()
        try:
            work: Coroutine[Any, Any, None] = scenario(thread)
            await asyncio.wait_for(work, 10)
        finally:
            await thread.stop()

    asyncio.run(main())
    return steps


async def read(stream: OutputStream) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while not stream.finished:
        index, output = await stream.next()
        tokens.setdefault(index, []).extend(output.outputs[0].token_ids)
    return tokens


def test_several_requests_share_one_stream() -> None:
    async def scenario(thread: EngineThread) -> None:
        stream = await thread.submit([request("a", 2), request("b", 4)])
        assert await read(stream) == {0: [5] * 2, 1: [5] * 4}

    steps = run(FakeEngine(), scenario)
    assert [len(step.outputs) for step in steps] == [2, 2, 1, 1], "one delivery per step"


def test_an_idle_engine_makes_no_steps_and_its_figures_are_fresh() -> None:
    engine = FakeEngine(0.002)

    async def scenario(thread: EngineThread) -> None:
        stream = await thread.submit([request("a", 1000)])
        await stream.next()
        assert thread.stats.num_running == 1
        stream.close()
        await thread.call(lambda engine: None)
        assert thread.stats.num_running == 0
        steps = engine.steps
        await asyncio.sleep(0.05)
        assert engine.steps == steps

    run(engine, scenario)


def test_calls_run_on_the_engines_thread_and_their_errors_come_back() -> None:
    async def scenario(thread: EngineThread) -> None:
        assert await thread.call(lambda engine: threading.current_thread().name) == "kvtrove-engine"
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda engine: 1 / 0)
        assert thread.alive, "a failed call is its caller's problem"

    run(FakeEngine(), scenario)


def test_all_prompts_of_a_request_are_taken_or_none() -> None:
    engine = FakeEngine()

    async def scenario(thread: EngineThread) -> None:
        with pytest.raises(RequestError):
            await thread.submit([request("a"), request("b", prompt=[13]), request("c")])
        await thread.call(lambda engine: None)

    run(engine, scenario)
    assert not engine.has_unfinished_requests()
    assert ("add", "c") not in engine.log


def test_a_caller_that_gives_up_waiting_leaves_nothing() -> None:
    engine = FakeEngine(0.02)

    async def scenario(thread: EngineThread) -> None:
        running = await thread.submit([request("a", 10)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(thread.submit([request("b", 1000)]), 0.001)
        await read(running)
        await thread.call(lambda engine: None)
        assert not engine.has_unfinished_requests()

    run(engine, scenario)


@pytest.mark.parametrize("where", ["step", "abort"])
def test_a_fault_is_told_to_everyone_at_once(where: str) -> None:
    engine = FakeEngine(0.002)

    def fail(*_: Any) -> Any:
        raise MemoryError("no more")

    async def scenario(thread: EngineThread) -> None:
        first, second = await thread.submit([request("a", 900)]), await thread.submit([request("b", 900)])
        await first.next()
        setattr(engine, where, fail)
        if where == "abort":
            first.close()
        else:
            waiting = asyncio.gather(
                thread.call(lambda engine: 1), thread.submit([request("c")]), return_exceptions=True
            )
            assert all(isinstance(r, ApiError | int | OutputStream) for r in await waiting)
            with pytest.raises(ApiError, match="MemoryError"):
                await read(first)
        with pytest.raises(ApiError, match="MemoryError"):
            await read(second)
        assert not thread.alive
        with pytest.raises(ApiError, match="restarted"):
            await thread.submit([request("d")])
        with pytest.raises(ApiError, match="restarted"):
            await thread.call(lambda engine: None)

    run(engine, scenario)


def test_stopping_tells_those_who_wait() -> None:
    async def scenario(thread: EngineThread) -> None:
        stream = await thread.submit([request("a", 4000)])
        await stream.next()
        await thread.stop()
        with pytest.raises(ApiError, match="shut down before"):
            await read(stream)

    run(FakeEngine(0.001), scenario)
