"""Who is loaded: within the budget at every moment, on demand, and gone when idle. Processes are stood in for."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from kvtrove.fleet.app import create_app
from kvtrove.fleet.budget import Need
from kvtrove.fleet.child import Child, State
from kvtrove.fleet.fleet import Fleet
from kvtrove.fleet.models_file import ModelEntry
from kvtrove.fleet.run import FleetServer
from kvtrove.server.auth import Keyring
from kvtrove.server.errors import ApiError
from kvtrove.server.settings import ServerSettings


class FakeChild(Child):
    """Takes a moment to start and stop; `fails` makes a start end badly."""

    def __init__(self, name: str) -> None:
        super().__init__(ModelEntry(name, name, (f"{name}-alias",)), Path("/nowhere"), ())
        self.fails, self.starts, self.ended = False, 0, asyncio.Event()

    async def start(self, kv: int) -> None:
        self.state, self.starts = "loading", self.starts + 1
        await asyncio.sleep(0.002)
        if self.fails:
            self.state = "failed"
            raise RuntimeError("no such file")
        self.state, self.ended = "ready", asyncio.Event()
        self.last_used = self.loaded_at = time.monotonic()

    async def stop(self, then: State = "asleep") -> None:
        if self.resident:
            self.state = "stopping"
            await asyncio.sleep(0.001)
        self.ended.set()
        self.state = then

    async def watch(self) -> None:
        await self.ended.wait()


def fleet_of(sizes: dict[str, int], budget: int, *, idle: float = 0.0) -> Fleet:
    children = [FakeChild(name) for name in sizes]
    return Fleet(children, {name: Need(size, 0) for name, size in sizes.items()}, budget, idle=idle, wait=True)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_names_and_aliases() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"small": 1, "large": 1}, 2)
        assert fleet.find(None) is fleet.find("small") is fleet.find("small-alias")
        assert fleet.find("small:adapter") is fleet.find("small-alias:adapter") is fleet.find("small")
        with pytest.raises(ApiError, match="did you mean 'large'") as error:
            fleet.find("larg")
        assert error.value.status == 404

    run(scenario)


def test_the_one_idle_for_longest_makes_room() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"a": 4, "b": 4, "c": 4}, 8)
        for name in "abac":
            async with fleet.using(fleet.find(name)):
                await asyncio.sleep(0.002)
        assert {name: child.state for name, child in fleet.children.items()} == {
            **{"a": "ready", "b": "asleep", "c": "ready"}
        }
        assert (fleet.used, fleet.evictions) == (8, 1)

    run(scenario)


def test_the_budget_holds_at_every_moment_and_everybody_is_served() -> None:
    """Sixty requests for five models of which two fit; a model at work is never put away."""

    async def scenario() -> None:
        fleet = fleet_of(dict.fromkeys("abcde", 3), 7)
        draw, served = random.Random(1), 0

        async def ask(name: str, hold: float) -> None:
            nonlocal served
            child = fleet.find(name)
            async with fleet.using(child):
                assert fleet.used <= fleet.budget
                await asyncio.sleep(hold)
                assert child.state == "ready"
            served += 1

        async with asyncio.timeout(20):
            await asyncio.gather(*(ask(draw.choice("abcde"), draw.random() / 500) for _ in range(60)))
        assert served == 60

    run(scenario)


def test_a_model_that_is_never_idle_gives_way_in_the_end() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"busy": 1, "rare": 1}, 1)
        busy, rare = fleet.find("busy"), fleet.find("rare")
        over = asyncio.Event()

        async def keep_busy() -> None:
            while not over.is_set():
                async with fleet.using(busy):
                    await asyncio.sleep(0.002)

        clients = [asyncio.create_task(keep_busy()) for _ in range(3)]
        await asyncio.sleep(0.02)
        async with asyncio.timeout(5), fleet.using(rare):
            over.set()
        await asyncio.gather(*clients)

    run(scenario)


def test_many_requests_for_a_cold_model_load_it_once_and_a_failure_reaches_all() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"a": 1}, 1)
        child = fleet.find("a")
        assert isinstance(child, FakeChild)
        await asyncio.gather(*(fleet.load(child) for _ in range(9)))
        assert (child.starts, child.state) == (1, "ready")
        await fleet.put_away(child, "asleep")
        child.fails = True
        failed = await asyncio.gather(*(fleet.load(child) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in failed] == ["a did not start; see the server's log"] * 3
        child.fails = False
        await fleet.load(child)
        assert child.starts == 3

    run(scenario)


def test_unloaded_waits_for_an_administrator_and_a_crash_does_not() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"a": 1}, 1)
        child = fleet.find("a")
        assert isinstance(child, FakeChild)
        await fleet.load(child)
        await fleet.put_away(child, "unloaded")
        with pytest.raises(ApiError, match="unloaded by an administrator"):
            await fleet.load(child)
        child.state = "asleep"
        await fleet.load(child)
        child.ended.set()
        async with asyncio.timeout(5):
            while child.state != "stopping":
                await asyncio.sleep(0)
            await fleet.load(child)  # waits until the memory of the one that crashed is free
        assert (child.state, child.starts) == ("ready", 3)
        await fleet.stop()
        assert (fleet.used, child.state) == (0, "asleep")
        with pytest.raises(ApiError, match="shutting down"):
            await fleet.load(child)

    run(scenario)


def test_idle_models_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtrove.fleet.fleet.LOOK_EVERY", 0.005)

    async def scenario() -> None:
        fleet = fleet_of({"a": 1, "b": 1}, 2, idle=0.02)
        house = asyncio.create_task(fleet.keep_house())
        a, b = fleet.find("a"), fleet.find("b")
        await fleet.load(b)
        async with fleet.using(a), asyncio.timeout(5):
            while b.state != "asleep":
                await asyncio.sleep(0.002)
            assert a.state == "ready"
        async with asyncio.timeout(5):
            while a.state != "asleep":
                await asyncio.sleep(0.002)
        house.cancel()

    run(scenario)


def test_to_look_neither_wakes_a_model_nor_keeps_it_awake() -> None:
    async def scenario() -> None:
        fleet = fleet_of({"a": 1, "b": 1}, 2)
        app = create_app(fleet, Keyring([], None), ServerSettings())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            page = await client.get("/")
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            for path in ("/v1/status", "/v1/status?model=b", "/v1/cache/reports?limit=1"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
            listed = (await client.get("/v1/models")).json()["data"]
        assert {one["id"]: one["root"] for one in listed} == {"a": "a", "a-alias": "a", "b": "b", "b-alias": "b"}
        child: Any = fleet.find("a")
        assert child.starts == 0
        async with fleet.using(child):
            pass
        before = child.last_used
        async with fleet.using(child, looks=True):
            await asyncio.sleep(0.002)
        assert child.last_used == before

    run(scenario)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_good_order(number: signal.Signals) -> None:
    """It is not raised again behind the server: what encloses it cleans up, and the process ends with 0."""
    server = FleetServer(uvicorn.Config("nothing"), Keyring())
    with server.capture_signals():
        os.kill(os.getpid(), number)
        assert (server.should_exit, server.force_exit) == (True, False)
        os.kill(os.getpid(), number)
        assert server.force_exit
