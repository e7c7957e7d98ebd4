"""Scheduling above tiers: who waits for a load, what a step without work does, and when computing again is better."""

from __future__ import annotations

from array import array

import pytest

from kvtrove.kv.arena import Arena
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.request import SamplingParams
from kvtrove.scheduler.limits import SchedulerLimits
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.scheduler.waiting import Until
from tests.echo import EchoEngine, EchoModel, continuation, echo_spec
from tests.faulty_store import FAULTS, Fault, FaultyStore

SPEC = echo_spec(4, Full(), SlidingWindow(6))


class TieredEngine(EchoEngine):
    """An echo engine above a store, which outlives it."""

    def __init__(self, store: FaultyStore, num_blocks: int = 60) -> None:
        super().__init__(SPEC, num_blocks, SchedulerLimits(8, 64))
        self.model = EchoModel(SPEC, Arena(SPEC, num_blocks), store)
        self.kv = KVCacheManager(
            SPEC, num_blocks, check=2, crc=self.model.arena.crc, clock=lambda: self.time, store=store
        )
        self.scheduler = Scheduler(self.kv, self.limits, lambda: self.time)

    def flush(self) -> None:
        """What an engine does while nothing runs."""
        assert self.kv.transfers is not None
        while self.kv.transfers.num_unsaved or self.kv.transfers.is_busy:
            self.kv.poll()
            self.model.runner.rows.execute(self.kv.take_ops())


def test_a_restarted_cache_loads_what_the_last_one_computed() -> None:
    store = FaultyStore(delay=2)
    first = TieredEngine(store)
    first.add("a", range(100, 150))
    first.run()
    first.flush()
    again = TieredEngine(store)
    request = again.add("a", range(100, 150))
    again.step()
    assert (again.last_step, again.scheduler.is_waiting) == ({}, True), "a step may be empty"
    again.run()
    assert request.num_cached_tokens == 48
    assert request.metrics.reused_from == {"faulty": 48}
    assert request.metrics.load is not None
    assert request.metrics.load.tokens == 48
    assert again.outputs("a") == first.outputs("a") == [continuation(range(100, 150), 4, SPEC)]
    assert again.kv.stats().used == 0


def test_what_the_pool_has_lost_comes_back_from_below() -> None:
    """Blocks are saved at the latest when they are evicted, so a small pool loses nothing."""
    engine = TieredEngine(FaultyStore(), num_blocks=36)
    for name in "abcd":
        engine.add(name, range(ord(name) * 100, ord(name) * 100 + 40))
        engine.run()
    request = engine.add("again", range(ord("a") * 100, ord("a") * 100 + 40))
    engine.run()
    assert request.num_cached_tokens == 36
    assert request.metrics.reused_from["faulty"] > 0
    assert engine.outputs("again") == engine.outputs("a")


def test_others_run_while_one_waits_for_its_load() -> None:
    store = FaultyStore(delay=6)
    first = TieredEngine(store)
    first.add("a", range(100, 150))
    first.run()
    first.flush()
    engine = TieredEngine(store)
    engine.add("a", range(100, 150))
    engine.add("b", range(300, 330))
    engine.step()
    assert engine.last_step == {"b": 30}
    engine.run()
    assert engine.outputs("a") == first.outputs("a")
    assert engine.outputs("b") == [continuation(range(300, 330), 4, SPEC)]


def test_an_aborted_load_leaves_nothing_behind() -> None:
    store = FaultyStore(delay=3)
    first = TieredEngine(store)
    first.add("a", range(100, 150))
    first.run()
    first.flush()
    engine = TieredEngine(store)
    engine.add("a", range(100, 150))
    engine.step()
    engine.scheduler.abort("a")
    engine.add("b", range(300, 310))
    engine.run()
    assert engine.kv.stats().used == 0
    assert engine.outputs("b") == [continuation(range(300, 310), 4, SPEC)]


def test_a_slow_tier_is_left_alone() -> None:
    store = FaultyStore()
    first = TieredEngine(store)
    first.add("a", range(100, 150))
    first.run()
    first.flush()
    engine = TieredEngine(store)
    assert engine.kv.transfers is not None
    engine.kv.transfers.rate = 1.0  # bytes per second
    engine.scheduler._admission.prefill_rate = 1e6
    request = engine.add("a", range(100, 150))
    engine.run()
    assert (request.num_cached_tokens, store.operations) == (0, store.operations)
    assert request.metrics.reused_from == {}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("every", [1, 2, 5])
def test_no_fault_of_a_tier_changes_a_token(fault: Fault, every: int) -> None:
    store = FaultyStore(fault, range(0, 10_000, every), delay=1)
    engine = TieredEngine(store, num_blocks=44)
    for turn in range(3):
        for name in "abc":
            engine.add(f"{name}{turn}", range(ord(name) * 100, ord(name) * 100 + 40 + 4 * turn))
    engine.run()
    for name, request in engine.requests.items():
        assert engine.outputs(name) == [continuation(request.prompt, 4, SPEC)], name
    engine.flush()
    assert engine.kv.stats().used == 0


def test_a_sequence_may_wait_for_a_time() -> None:
    engine = TieredEngine(FaultyStore())
    request = engine.add("a", range(100, 110), SamplingParams(max_tokens=2))
    request.sequences[0].waits_for = Until(3.0)
    ran = []
    for _ in range(4):
        engine.step()
        ran.append(bool(engine.last_step))
    assert ran == [False, False, True, True]


def test_events_tell_routers_what_there_is() -> None:
    store = FaultyStore()
    engine = TieredEngine(store, num_blocks=30)
    told: list[tuple[str, int]] = []
    engine.kv.on_event = lambda event: told.append((event.kind, event.group))
    for name in "abca":
        engine.add(name + str(len(told)), array("i", range(ord(name) * 100, ord(name) * 100 + 40)))
        engine.run()
    kinds = [kind for kind, _ in told]
    assert kinds[:2] == ["sealed", "sealed"]
    assert {"sealed", "evicted", "loaded"} == set(kinds)
    sealed, evicted, loaded = map(kinds.count, ("sealed", "evicted", "loaded"))
    assert sealed + loaded - evicted == engine.kv.stats().cached + engine.kv.stats().duplicates
