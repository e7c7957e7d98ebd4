"""A step that fails ends whoever is at fault: the others get their own tokens, nothing leaks, the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.kv.block import BlockState
from kvtrove.recovery import EngineDeadError
from kvtrove.request import EngineError, Guide, RequestError, RequestOutput, SamplingParams
from kvtrove.scheduler.sequence import Sequence
from tests.faults import ATTRIBUTED, STAGES, Faults, Watched, hanging, raising

VOCAB = 8192
PROMPTS = {name: list(range(40 * i + 10, 40 * i + 31)) for i, name in enumerate(
    ("plain", "seeded", "stream", "beam", "several", "guided", "logprobs", "stop")
)}  # fmt: skip
PARAMS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0},
    "seeded": {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.2},
    "stream": {"temperature": 0, "output_kind": "delta"},
    "beam": {"temperature": 0, "beam_width": 3, "n": 2},
    "several": {"temperature": 1.0, "seed": 5, "n": 3},
    "guided": {"temperature": 1.0, "seed": 7},
    "logprobs": {"temperature": 0, "logprobs": 2, "prompt_logprobs": 1},
    "stop": {"temperature": 0, "stop": ["zzzz"], "min_tokens": 2},
}


class EvenGuide:
    """Allows tokens of one parity in turn, so that a guide that missed a token would show."""

    problem: str | None = None

    def __init__(self, accepted: int = 0) -> None:
        self.accepted = accepted

    def mask(self) -> NDArray[np.int32]:
        bits = (np.arange(VOCAB) % 2 == self.accepted % 2).astype(np.uint8)
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == self.accepted % 2
        self.accepted += 1

    def copy(self) -> Guide:
        return EvenGuide(self.accepted)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(str(demo_model_dir()), num_blocks=300, block_size=8, linear="torch", dtype="float32"))


@pytest.fixture(scope="module")
def faults(engine: Engine) -> Iterator[Faults]:
    with Faults(engine) as wrapped:
        yield wrapped


@pytest.fixture(scope="module")
def undisturbed(engine: Engine, faults: Faults) -> dict[str, Any]:
    return run(engine)


def run(engine: Engine, names: list[str] | None = None, tokens: int = 7) -> dict[str, Any]:
    """Every kind of request at once: name -> what it answered, or the error that ended it."""
    for name in names or PARAMS:
        params = SamplingParams(max_tokens=tokens, **PARAMS[name])
        engine.add(name, PROMPTS[name], params, guide=EvenGuide() if name == "guided" else None)
    told: dict[str, list[RequestOutput]] = {}
    for _ in range(1000):
        if not engine.has_unfinished_requests():
            break
        for output in engine.step():
            told.setdefault(output.request_id, []).append(output)
    else:
        raise AssertionError("the engine does not come to an end")
    stats = engine.kv.stats()
    assert stats.free + stats.cached == stats.num_blocks, "blocks are still held"
    assert engine.kv.check() == []
    assert not engine.kv.sequences, "handles are still open"
    assert not engine.stats().faults.degraded
    engine.reset_prefix_cache()
    return {name: answer(outputs) for name, outputs in told.items()}


def answer(outputs: list[RequestOutput]) -> Any:
    last = outputs[-1]
    assert last.finished
    assert not any(output.finished for output in outputs[:-1])
    if last.error is not None:
        return last.error
    deltas = outputs if last.request_id == "stream" else [last]
    joined: dict[int, tuple[list[int], str, Any]] = {}
    for one in (one for output in deltas for one in output.outputs):
        ids, text, _ = joined.get(one.index, ([], "", None))
        joined[one.index] = (ids + one.token_ids, text + one.text, one.finish_reason)
    scores = [[list(entry) for entry in one.logprobs or []] for one in last.outputs]
    return joined, scores, [entry and list(entry) for entry in last.prompt_logprobs or []]


def check_only(culprit: str, seen: dict[str, Any], undisturbed: dict[str, Any], told: str) -> None:
    assert isinstance(seen[culprit], EngineError), seen[culprit]
    assert told in str(seen[culprit])
    others = {name: value for name, value in undisturbed.items() if name != culprit}
    assert {name: value for name, value in seen.items() if name != culprit} == others


CASES = [
    (stage, name)
    for i, stage in enumerate(STAGES)
    for j, name in enumerate(PARAMS)
    if (i + j) % 3 == 0 and (name != "beam" or stage not in ("append", "output"))
]
"""Every stage meets several kinds of requests, every kind several stages. Beams are appended and told at their end."""


@pytest.mark.parametrize(("stage", "culprit"), CASES)
def test_a_request_that_always_fails_ends_alone(
    stage: str, culprit: str, engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    kind = MemoryError if PROMPTS[culprit][0] % 80 == 10 else RuntimeError
    faults.arm(stage, raising(kind), culprit)
    seen = run(engine)
    faults.disarm()
    check_only(culprit, seen, undisturbed, f"{kind.__name__}; see the server's log")


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ATTRIBUTED])
def test_a_fault_that_passes_by_ends_nobody(
    stage: str, engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    before = engine.stats().faults
    faults.arm(stage, raising(MemoryError), "plain", once=True)
    seen = run(engine)
    assert faults.fired == 1
    faults.disarm()
    assert seen == undisturbed
    after = engine.stats().faults
    assert (after.steps - before.steps, after.requests - before.requests) == (1, 0)


@pytest.mark.parametrize("culprit", [name for name in PARAMS if name != "beam"])
def test_logits_that_are_not_numbers_end_their_request_and_leave_nothing_in_the_cache(
    culprit: str, engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    faults.arm("nan", raising(RuntimeError), culprit)
    engine.add(culprit, PROMPTS[culprit], SamplingParams(max_tokens=7, **PARAMS[culprit]))
    told = [output for _ in range(20) if engine.has_unfinished_requests() for output in engine.step()]
    assert "logits are not finite" in str(told[-1].error)
    assert engine.kv.stats().cached == 0, "what it computed may be broken too"
    seen = run(engine)
    faults.disarm()
    check_only(culprit, seen, undisturbed, "logits are not finite")


@pytest.mark.parametrize("stage", ["model", "append"])
def test_a_request_that_hangs_is_ended_by_the_watchdog(
    stage: str, engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    faults.arm(stage, hanging(2.5), "plain")
    with Watched(engine, 2.0) as watched:
        seen = run(engine, ["plain", "beam"])
    faults.disarm()
    assert watched.stuck == 0
    check_only("plain", seen, {"plain": undisturbed["plain"], "beam": undisturbed["beam"]}, "StepTimeoutError")


@pytest.mark.parametrize("method", ["mask", "accept"])
def test_a_guide_that_fails_ends_its_request(
    method: str, engine: Engine, faults: Faults, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = getattr(EvenGuide, method)

    def broken(self: EvenGuide, *args: Any) -> Any:
        if self.accepted == 3:
            raise ValueError("injected")
        return inner(self, *args)

    monkeypatch.setattr(EvenGuide, method, broken)
    check_only("guided", run(engine), undisturbed, "ValueError")


def test_broken_books_are_thrown_away_and_nobody_notices(
    faults: Faults, undisturbed: dict[str, Any], engine: Engine
) -> None:
    """A block is lost, and a reference too many is held: without `check`, only the fault brings it to light."""
    faults.disarm()
    config = EngineConfig(str(demo_model_dir()), num_blocks=300, block_size=8, linear="torch", dtype="float32", check=0)
    careless = Engine(config)
    with Faults(careless) as own:

        def damage() -> None:
            [lost, *_] = [b for b in careless.kv.pool.blocks if b.state is BlockState.OPEN]
            lost.ref_count += 5
            careless.kv.pool._free.append(lost)
            raise RuntimeError("injected")

        own.arm("model", damage, "plain", once=True)
        assert run(careless) == undisturbed
        assert own.fired == 1


def test_a_request_aborted_while_it_is_suspected_leaves_nothing(
    engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    faults.arm("model", raising(RuntimeError), "plain")
    for name in ("plain", "stop", "logprobs"):
        engine.add(name, PROMPTS[name], SamplingParams(max_tokens=7, **PARAMS[name]))
    while not engine.stats().faults.degraded:
        engine.step()
    for name in ("plain", "stop", "logprobs"):
        assert engine.abort(name)
    faults.disarm()
    assert run(engine) == undisturbed


def test_requests_that_come_while_others_are_tried_are_served(
    engine: Engine, faults: Faults, undisturbed: dict[str, Any]
) -> None:
    faults.arm("model", raising(RuntimeError), "plain")
    for name in ("plain", "stop"):
        engine.add(name, PROMPTS[name], SamplingParams(max_tokens=7, **PARAMS[name]))
    told = {}
    while not engine.stats().faults.degraded:
        told |= {output.request_id: output for output in engine.step()}
    waiting = engine.stats().num_waiting
    engine.add("seeded", PROMPTS["seeded"], SamplingParams(max_tokens=7, **PARAMS["seeded"]))
    assert engine.stats().num_waiting == waiting + 1
    while engine.has_unfinished_requests():
        told |= {output.request_id: output for output in engine.step()}
    faults.disarm()
    assert isinstance(told["plain"].error, EngineError)
    assert answer([told["stop"]]) == undisturbed["stop"]
    assert answer([told["seeded"]]) == undisturbed["seeded"]
    engine.reset_prefix_cache()


def test_faults_in_a_row_restart_the_engine_and_the_queue_is_served(
    engine: Engine, faults: Faults, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 6
    monkeypatch.setattr("kvtrove.recovery.MAX_IN_A_ROW", left)

    def fail() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("injected")

    inner, before = engine.runner.forward, engine.stats().faults.restarts
    monkeypatch.setattr(engine.runner, "forward", lambda step, **how: (fail(), inner(step, **how))[1])
    seen = run(engine)
    assert engine.stats().faults.restarts == before + 1
    failed = [name for name, value in seen.items() if isinstance(value, EngineError)]
    assert 0 < len(failed) < len(undisturbed)
    assert all(seen[name] == undisturbed[name] for name in undisturbed if name not in failed)


def test_an_engine_that_can_compute_nothing_says_so(
    engine: Engine, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtrove.recovery.MAX_IN_A_ROW", 6)
    monkeypatch.setattr(engine.runner, "forward", lambda step, **how: raising(RuntimeError)())
    with pytest.raises(EngineDeadError, match="the engine cannot compute any more: injected"):
        run(engine)
    for name in PARAMS:
        engine.abort(name)
    monkeypatch.undo()
    assert isinstance(run(engine, ["plain"])["plain"], tuple), "this one can after all"


def test_a_step_without_work_is_a_fault_and_not_an_endless_loop(
    engine: Engine, faults: Faults, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a bug let the scheduler pass over a request for ever."""
    inner = Sequence.prefill_need.fget
    assert inner is not None
    passed_over = property(lambda seq: 0 if seq.request.id == "plain" else inner(seq))
    monkeypatch.setattr(Sequence, "prefill_need", passed_over)
    check_only("plain", run(engine), undisturbed, "NoProgressError")


def test_a_request_error_is_no_fault(engine: Engine, faults: Faults) -> None:
    before = engine.stats().faults
    engine.add("x", [5, 6, 7], SamplingParams(min_tokens=1, stop_token_ids=list(range(VOCAB))))
    [output] = engine.step()
    assert isinstance(output.error, RequestError)
    assert engine.stats().faults == before
