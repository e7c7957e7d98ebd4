"""The scheduler on the echo model: whatever happens on the way, the tokens are those of a run from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import First
from kvtrove.request import RequestError, SamplingParams
from kvtrove.scheduler.policies import share
from kvtrove.scheduler.scheduler import SchedulerLimits
from tests.echo import EchoEngine, continuation, echo_spec

FULL = echo_spec(4, Full())
HYBRID = echo_spec(4, Full(), SlidingWindow(6), SlidingWindow(6))
WINDOW = echo_spec(4, SlidingWindow(10))
SPECS = pytest.mark.parametrize("spec", [FULL, HYBRID, WINDOW], ids=["full", "hybrid", "window"])


def expected(engine: EchoEngine, name: str) -> list[list[int]]:
    """First tokens come from one row, so stream i continues the prompt plus its own first token."""
    request = engine.requests[name]
    lengths = [seq.num_output for seq in sorted(request.sequences, key=lambda s: s.index)]
    return [continuation(request.prompt, n, engine.spec, i) for i, n in enumerate(lengths)]


def idle(engine: EchoEngine) -> bool:
    free = engine.kv.num_free_blocks == engine.kv.num_blocks
    return free and not engine.kv.sequences and not engine.kv.check()


@SPECS
@pytest.mark.parametrize("budget", [8, 13, 64])
def test_chunked_prompts_give_the_tokens_of_a_run_from_scratch(spec, budget):
    engine = EchoEngine(spec, 60, SchedulerLimits(8, budget))
    for i in range(5):
        engine.add(f"r{i}", range(10 * i, 10 * i + 7 * i + 1), SamplingParams(max_tokens=6))
    engine.run()
    assert all(engine.outputs(name) == expected(engine, name) for name in engine.requests)
    assert idle(engine)


@SPECS
def test_preemption_changes_no_token(spec):
    """A pool for about two of six requests. Only what grows is preempted: a window takes all it ever needs at once."""
    engine = EchoEngine(spec, spec.blocks_for(44, 32) * 2, SchedulerLimits(8, 32))
    for i in range(6):
        engine.add(f"r{i}", range(100 * i, 100 * i + 12), SamplingParams(max_tokens=32))
    engine.run()
    assert (engine.scheduler.num_preemptions > 0) == (spec is not WINDOW)
    assert all(engine.outputs(name) == expected(engine, name) for name in engine.requests)
    assert idle(engine)


def test_the_last_that_came_is_preempted_first():
    engine = EchoEngine(FULL, 12, SchedulerLimits(4, 64))
    for name in "abc":
        engine.add(name, range(ord(name), ord(name) + 12), SamplingParams(max_tokens=20))
    engine.run()
    preempted = [engine.requests[name].metrics.num_preemptions for name in "abc"]
    finished = [engine.requests[name].metrics.finished_time for name in "abc"]
    assert preempted[0] == 0
    assert sum(preempted) > 0
    assert finished == sorted(finished)


def test_a_prefix_is_computed_once_even_when_both_arrive_in_the_same_step():
    engine = EchoEngine(FULL, 40, SchedulerLimits(8, 64))
    engine.add("a", range(33))
    engine.add("b", [*range(32), 99])
    engine.run()
    assert engine.requests["b"].num_cached_tokens == 32
    assert engine.outputs("b") == expected(engine, "b")
    assert engine.model.computed == 33 + 1 + 2 * 3  # both prompts but the shared 32, and three decodes each


def test_a_duplicate_that_is_held_back_does_not_hold_back_others():
    engine = EchoEngine(FULL, 60, SchedulerLimits(8, 16))
    engine.add("a", range(60))
    engine.add("same", range(60))
    engine.add("other", range(500, 504))
    engine.step()
    assert "same" not in engine.last_step
    assert engine.last_step["other"] == 4


def test_the_held_back_one_computes_itself_when_the_first_is_aborted():
    engine = EchoEngine(FULL, 60, SchedulerLimits(8, 16))
    engine.add("a", range(60))
    engine.add("same", range(60))
    engine.step()
    engine.scheduler.abort("a")
    engine.run()
    assert engine.outputs("same") == expected(engine, "same")
    assert idle(engine)


def test_without_a_prefix_cache_nothing_is_reused_or_held_back():
    engine = EchoEngine(FULL, 60, SchedulerLimits(8, 256), enable_prefix_caching=False)
    engine.add("a", range(33))
    engine.add("b", range(33))
    engine.step()
    assert engine.last_step == {"a": 33, "b": 33}
    engine.run()
    assert engine.requests["b"].num_cached_tokens == 0
    assert engine.kv.stats().cached == 0


@SPECS
def test_parallel_samples_share_one_prefill(spec):
    engine = EchoEngine(spec, 80, SchedulerLimits(8, 64))
    engine.add("a", range(30), SamplingParams(n=4, max_tokens=9))
    engine.run()
    assert engine.outputs("a") == expected(engine, "a")
    assert engine.model.computed == 30 + 4 * 8
    assert idle(engine)


def test_parallel_samples_survive_a_pool_too_small_for_all_of_them():
    engine = EchoEngine(FULL, 14, SchedulerLimits(8, 64))
    engine.add("a", range(18), SamplingParams(n=4, max_tokens=24))
    engine.run()
    assert engine.scheduler.num_preemptions > 0
    assert engine.outputs("a") == expected(engine, "a")
    assert idle(engine)


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one():
    engine = EchoEngine(FULL, 200, SchedulerLimits(8, 16))
    engine.add("long", range(400), SamplingParams(max_tokens=1))
    engine.add("short", range(500, 506), SamplingParams(max_tokens=1))
    engine.run()
    times = {name: engine.requests[name].metrics.first_token_time for name in ("long", "short")}
    assert times["short"] == 1.0
    assert times["long"] > 20


def test_short_prompts_that_fit_the_step_all_start_at_once():
    """The limit on concurrent prefills is for prompts that cannot all be computed in one step."""
    engine = EchoEngine(FULL, 200, SchedulerLimits(16, 64, max_concurrent_prefills=2))
    for i in range(10):
        engine.add(f"r{i}", range(100 * i, 100 * i + 6), SamplingParams(max_tokens=1))
    engine.step()
    assert engine.last_step == {f"r{i}": 6 for i in range(10)}


def test_of_prompts_too_long_for_a_step_only_some_share_it():
    engine = EchoEngine(FULL, 200, SchedulerLimits(16, 64, max_concurrent_prefills=2))
    for i in range(4):
        engine.add(f"r{i}", range(100 * i, 100 * i + 60), SamplingParams(max_tokens=1))
    engine.step()
    assert engine.last_step == {"r0": 32, "r1": 32}


def test_decodes_never_wait_for_prompts():
    engine = EchoEngine(FULL, 200, SchedulerLimits(8, 16))
    engine.add("reader", range(4), SamplingParams(max_tokens=12))
    engine.step()
    engine.add("long", range(100, 400), SamplingParams(max_tokens=1))
    for _ in range(11):
        engine.step()
        assert engine.last_step["reader"] == 1
    assert engine.requests["reader"].finished


def test_no_more_than_max_num_seqs_run_at_once_counting_forks_to_come():
    engine = EchoEngine(FULL, 200, SchedulerLimits(4, 64))
    engine.add("a", range(8), SamplingParams(n=3, max_tokens=5))
    engine.add("b", range(100, 108), SamplingParams(n=2, max_tokens=5))
    most = 0
    while engine.scheduler.has_unfinished:
        most = max(most, len(engine.step().sequences))
    assert most == 3
    assert engine.outputs("b") == expected(engine, "b")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        (
            range(30),
            SamplingParams(max_tokens=40),
            r"30 prompt \+ 40 new tokens need 18 blocks .* has 12 \(at most 48 tokens\): lower max_tokens to 18",
        ),
        (range(60), SamplingParams(max_tokens=4), r"shorten the prompt to under 48 tokens"),
        (
            range(8),
            SamplingParams(max_tokens=12, beam_width=4),
            r"in 4 beams need 20 blocks .*\(at most 12 tokens\): lower max_tokens to 4",
        ),
        (range(8), SamplingParams(n=9), r"n: 9 sequences are more than max_num_seqs \(8\)"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_number_that_does(prompt, params, message):
    engine = EchoEngine(FULL, 12, SchedulerLimits(8, 32))
    with pytest.raises(RequestError, match=message):
        engine.add("a", prompt, params)
    assert not engine.scheduler.has_unfinished


def test_the_number_that_an_error_names_does_work():
    engine = EchoEngine(FULL, 12, SchedulerLimits(8, 32))
    engine.add("a", range(30), SamplingParams(max_tokens=18))
    engine.run()
    assert engine.outputs("a") == expected(engine, "a")


def test_stop_tokens_and_min_tokens():
    engine = EchoEngine(FULL, 40)
    free_run = continuation(range(10), 8, FULL)
    engine.add("a", range(10), SamplingParams(max_tokens=8, stop_token_ids=[free_run[3]]))
    engine.add("b", range(10), SamplingParams(max_tokens=8, stop_token_ids=[free_run[3]], min_tokens=6))
    engine.run()
    a, b = (engine.requests[name].sequences[0] for name in "ab")
    assert (a.finish_reason, a.stop_reason, a.num_output) == ("stop", free_run[3], 4)
    assert (b.finish_reason, b.num_output) == ("length", 8)


def test_prompt_logprobs_cover_every_prompt_token_once_whatever_is_cached():
    engine = EchoEngine(FULL, 60, SchedulerLimits(8, 16))
    engine.add("warm", range(40))
    engine.run()
    engine.add("a", range(40), SamplingParams(prompt_logprobs=0, max_tokens=2))
    engine.run()
    report = engine.requests["a"].prompt_logprobs
    assert report[0] is None
    assert [next(iter(entry)) for entry in report[1:]] == list(range(1, 40))
    assert engine.requests["a"].num_cached_tokens == 0


def test_tenants_with_different_salts_share_nothing():
    engine = EchoEngine(FULL, 60)
    engine.add("a", range(33), salt="one")
    engine.run()
    engine.add("b", range(33), salt="two")
    engine.run()
    assert engine.requests["b"].num_cached_tokens == 0


@SPECS
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_random_traffic_with_aborts_ends_idle_with_the_right_tokens(spec, data):
    """Requests of all kinds come, fork, are preempted and aborted at random moments; checks run after every call."""
    chunk = data.draw(st.sampled_from([8, 16, 40]))
    engine = EchoEngine(spec, spec.blocks_for(40, chunk) * 4, SchedulerLimits(8, chunk, data.draw(st.integers(1, 4))))
    aborted = set()
    for i in range(data.draw(st.integers(1, 10))):
        start = data.draw(st.sampled_from([0, 0, 0, 100]))
        prompt = range(start, start + data.draw(st.integers(1, 24)))
        kind = data.draw(st.sampled_from(["one", "one", "n", "beam"]))
        params = SamplingParams(
            max_tokens=data.draw(st.integers(1, 16)),
            n=3 if kind == "n" else 1,
            beam_width=3 if kind == "beam" else 0,
        )
        engine.add(f"{kind}{i}", prompt, params)
        for _ in range(data.draw(st.integers(0, 4))):
            engine.step()
        if data.draw(st.integers(0, 5)) == 0:
            victim = data.draw(st.sampled_from(sorted(engine.requests)))
            if engine.scheduler.abort(victim):
                aborted.add(victim)
    engine.run()
    for name, request in engine.requests.items():
        if not request.beam and name not in aborted:
            assert engine.outputs(name) == expected(engine, name), name
    assert idle(engine)


@given(st.integers(0, 500), st.lists(st.integers(0, 300), max_size=12))
def test_shares_are_max_min_fair(budget, needs):
    shares = share(budget, needs)
    assert sum(shares) == min(budget, sum(needs))
    assert all(0 <= s <= n for s, n in zip(shares, needs, strict=True))
    unsatisfied = [s for s, n in zip(shares, needs, strict=True) if s < n]
    if unsatisfied:
        assert max(unsatisfied) - min(unsatisfied) <= 1
        assert max(shares) <= min(unsatisfied) + 1  # nobody gets more than one who wants more


def test_room_is_kept_for_what_still_grows():
    """Two prompts of two blocks each, and one of first tokens, which never get more; a block for one to go on."""
    stored = First(4, ECHO)
    spec = replace(FULL, layers=tuple(replace(layer, first=stored) for layer in FULL.layers))
    assert (len(spec.groups), spec.num_growing) == (2, 1)
    engine = EchoEngine(spec, 7, SchedulerLimits(8, 64))
    engine.add("a", range(8), SamplingParams(max_tokens=1))
    engine.add("b", range(100, 108), SamplingParams(max_tokens=1))
    engine.step()
    assert engine.last_step == {"a": 8, "b": 8}
    engine.run()
    assert all(engine.outputs(name) == expected(engine, name) for name in engine.requests)
    assert idle(engine)
