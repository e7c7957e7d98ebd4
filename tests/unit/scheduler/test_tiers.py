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
    engine.scheduler.admission.prefill_rate = 1e6
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


def test_what_a_tier_could_not_take_is_offered_again_when_it_is_used() -> None:
    """A disk that was full for a while must not cost a conversation its next restart."""
    store = FaultyStore("fail", range(16))
    engine = TieredEngine(store)
    prompt = range(100, 132)
    for name in "ab":
        engine.add(name, prompt)
        engine.run()
        engine.flush()
    again = TieredEngine(store)
    request = again.add("a", prompt)
    again.run()
    assert request.metrics.reused_from == {"faulty": 28}


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


def primed(store: FaultyStore, length: int = 50) -> None:
    """Another engine has computed this prompt, and the store has it."""
    first = TieredEngine(store)
    first.add("a", range(100, 100 + length))
    first.run()
    first.flush()


def expect(engine: TieredEngine, name: str) -> None:
    """What an engine does once a request is queued."""
    [seq] = engine.requests[name].sequences
    engine.scheduler.admission.expect(seq, engine.scheduler.running.values())


def test_a_queued_request_is_read_for_before_its_turn() -> None:
    store = FaultyStore(delay=3)
    primed(store)
    engine = TieredEngine(store)
    engine.limits = engine.scheduler.limits = engine.scheduler.admission.limits = SchedulerLimits(1, 64)
    engine.add("first", range(300, 310), SamplingParams(max_tokens=8))
    engine.step()
    request = engine.add("a", range(100, 150))
    expect(engine, "a")
    for _ in range(6):
        engine.step()
    [seq] = request.sequences
    assert seq.load is not None
    assert (seq.load.done, request.num_cached_tokens) == (True, None), "there before its turn has come"
    engine.run()
    assert request.metrics.reused_from == {"faulty": 48}
    assert engine.kv.stats().used == 0


def test_loads_of_the_queue_give_way_to_whoever_runs() -> None:
    """Nothing that runs is preempted for what is only expected."""
    store = FaultyStore(delay=1)
    primed(store)
    engine = TieredEngine(store, num_blocks=44)
    engine.limits = engine.scheduler.limits = engine.scheduler.admission.limits = SchedulerLimits(1, 64)
    engine.add("long", range(300, 310), SamplingParams(max_tokens=70))
    engine.step()
    request = engine.add("a", range(100, 130))
    expect(engine, "a")
    assert request.sequences[0].load is not None
    engine.run()
    assert engine.scheduler.num_preemptions == 0
    assert engine.outputs("a") == [continuation(range(100, 130), 4, SPEC)]
    assert engine.outputs("long") == [continuation(range(300, 310), 70, SPEC)]


def test_what_is_expected_is_evicted_late() -> None:
    engine = TieredEngine(FaultyStore(), num_blocks=48)
    engine.kv.transfers = None
    for name in "ab":
        engine.add(name, range(ord(name) * 100, ord(name) * 100 + 32))
        engine.run()
    again = engine.add("a2", range(9700, 9732))
    expect(engine, "a2")
    engine.scheduler.waiting.clear()
    engine.add("other", range(500, 560))
    engine.run()
    engine.scheduler.waiting.append(again.sequences[0])
    engine.run()
    assert again.num_cached_tokens == 28, "the older prompt is there, because somebody waited for it"
    engine.add("b2", range(9800, 9832))
    engine.run()
    assert engine.requests["b2"].num_cached_tokens < 28


def test_a_preempted_sequence_comes_back_with_its_open_block() -> None:
    """Parked: not a token that was computed is computed again, while its full blocks are there."""
    engine = TieredEngine(FaultyStore(), num_blocks=60)
    engine.add("a", range(100, 113), SamplingParams(max_tokens=12))
    for _ in range(3):
        engine.step()
    [seq] = engine.requests["a"].sequences
    assert seq.kv.num_computed == 15
    engine.scheduler.preempt(seq)
    computed = engine.model.computed
    engine.step()
    assert engine.model.computed - computed == 1
    engine.run()
    assert engine.outputs("a") == [continuation(range(100, 113), 12, SPEC)]


def test_reports_say_what_tiers_said() -> None:
    slow = FaultyStore()
    primed(slow)
    engine = TieredEngine(slow)
    assert engine.kv.transfers is not None
    engine.kv.transfers.rate, engine.scheduler.admission.prefill_rate = 1.0, 1e6
    request = engine.add("a", range(100, 150))
    engine.run()
    assert request.metrics.tier_reason == "48 tokens more are stored; computing them is faster"
    gone = FaultyStore(budget=SPEC.block_bytes * 4)
    primed(gone)
    other = TieredEngine(gone)
    request = other.add("a", range(100, 150))
    other.run()
    assert request.metrics.tier_reason == "evicted"


@pytest.mark.parametrize(("fault", "told"), [("flip", "faulty checksum"), ("stall", "faulty timeout")])
def test_a_load_that_fails_says_how(fault: Fault, told: str) -> None:
    store = FaultyStore(delay=1)
    primed(store)
    store._fault = fault
    engine = TieredEngine(store)
    request = engine.add("a", range(100, 150))
    engine.run()
    assert request.metrics.tier_reason == told
    assert engine.outputs("a") == [continuation(range(100, 150), 4, SPEC)]
