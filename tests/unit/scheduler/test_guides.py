"""Guides: every sequence has its own, in step with its own tokens, whatever the scheduler does with the sequence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtrove.kv.retention import Full
from kvtrove.request import SamplingParams
from kvtrove.scheduler.output import SchedulerOutput
from kvtrove.scheduler.scheduler import SchedulerLimits
from kvtrove.scheduler.sequence import Request
from tests.echo import EchoEngine, echo_spec


class Recorder:
    """A guide whose mask is a fingerprint of all that it has accepted."""

    problem: str | None = None

    def __init__(self, accepted: tuple[int, ...] = ()) -> None:
        self.accepted = accepted

    def mask(self) -> NDArray[np.int32]:
        return np.array([len(self.accepted), sum(self.accepted)], dtype=np.int32)

    def accept(self, token_id: int) -> None:
        self.accepted += (token_id,)

    def copy(self) -> Recorder:
        return Recorder(self.accepted)


def start(params: SamplingParams, num_blocks: int = 60, requests: int = 1) -> tuple[EchoEngine, list[Request]]:
    engine = EchoEngine(echo_spec(4, Full()), num_blocks, SchedulerLimits(8, 32))
    added = [engine.add(f"r{i}", range(20 * i, 20 * i + 9), params) for i in range(requests)]
    for request in added:
        request.guide = request.sequences[0].guide = Recorder()
    return engine, added


def in_step(request: Request) -> bool:
    return all(isinstance(seq.guide, Recorder) and seq.guide.accepted == tuple(seq.output) for seq in request.sequences)


def masks(step: SchedulerOutput) -> list[list[int]]:
    return [s.sample.allowed.tolist() for s in step.sequences if s.sample is not None and s.sample.allowed is not None]


@pytest.mark.parametrize("n", [1, 3])
def test_a_guide_follows_its_own_sequence(n: int) -> None:
    engine, [request] = start(SamplingParams(n=n, max_tokens=8))
    assert masks(engine.step()) == [[0, 0]], "all first tokens are drawn from one row"
    while engine.scheduler.has_unfinished:
        live = request.unfinished
        expected = [[seq.num_output, sum(seq.output)] for seq in live]
        assert masks(engine.step()) == expected
        assert in_step(request)
    assert [seq.num_output for seq in request.sequences] == [8] * n


def test_beams_copy_their_parents_guide() -> None:
    engine, [request] = start(SamplingParams(beam_width=3, n=2, max_tokens=6))
    while engine.scheduler.has_unfinished:
        engine.step()
        assert in_step(request)
    assert len(request.sequences) == 2


def test_a_preempted_sequence_keeps_its_place_in_the_grammar() -> None:
    engine, requests = start(SamplingParams(max_tokens=24), num_blocks=20, requests=4)
    engine.run()
    assert engine.scheduler.num_preemptions > 0
    assert all(in_step(request) and request.sequences[0].num_output == 24 for request in requests)


def test_a_grammar_alone_says_where_its_text_may_end() -> None:
    """min_tokens bans end tokens; where the grammar is complete nothing else would be left."""
    engine, [request] = start(SamplingParams(max_tokens=4, min_tokens=3))
    [work] = engine.step().sequences
    assert work.sample is not None
    assert not work.sample.banned
    assert request.guide is not None
