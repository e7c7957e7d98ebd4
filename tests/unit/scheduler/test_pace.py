"""Chunks of prompts in time: learned, never below what is worth a step, and only where somebody would wait."""

from __future__ import annotations

import pytest

from kvtrove.request import SamplingParams
from kvtrove.scheduler.pace import SMALLEST, Pace
from kvtrove.scheduler.scheduler import SchedulerLimits
from tests.echo import EchoEngine, echo_spec


def test_the_limit_is_what_fits_into_the_time_in_whole_blocks() -> None:
    pace = Pace(seconds=0.25, most=2048, size=32)
    assert pace.tokens == 2048, "nothing is known yet"
    pace.learn(0, 8, 0.02)
    pace.learn(2000, 8, 1.02)  # half a millisecond for a token
    assert pace.tokens == 480
    for _ in range(50):
        pace.learn(480, 8, 0.02 + 480 * 0.002)
    assert pace.tokens == 96
    for _ in range(50):
        pace.learn(96, 0, 96 * 1.0)
    assert pace.tokens == SMALLEST
    for _ in range(50):
        pace.learn(SMALLEST, 0, 1e-9)
    assert pace.tokens == 2048


@pytest.mark.parametrize("pace", [Pace(0.0, 512, 16), Pace(0.1, 512, 16)])
def test_without_a_limit_or_long_prompts_nothing_changes(pace: Pace) -> None:
    pace.learn(SMALLEST - 1, 3, 100.0)
    pace.learn(0, 3, 100.0)
    assert pace.tokens == 512


def test_prompts_are_cut_only_beside_decodes() -> None:
    engine = EchoEngine(echo_spec(4), 400, SchedulerLimits(8, 256))
    engine.scheduler.prompt_limit = 16
    engine.add("alone", list(range(100)), SamplingParams(max_tokens=20))
    engine.step()
    assert engine.last_step == {"alone": 100}
    engine.add("beside", list(range(200, 300)), SamplingParams(max_tokens=20))
    engine.step()
    assert engine.last_step == {"alone": 1, "beside": 16}
    engine.run()


def test_log_probabilities_of_a_prompt_count_for_the_time_they_take() -> None:
    pace = Pace(seconds=0.1, most=2048, size=16)
    assert pace.weight == 8.0, "as long as nobody knows, no more than 256 at once"
    pace.learn(512, 0, 512 * 0.004, listed=512)
    assert pace.tokens / pace.weight == pytest.approx(25), "a tenth of a second, whatever plain tokens take"
    pace.learn(512, 0, 0.512)
    assert pace.tokens == 96
    assert pace.tokens / pace.weight == pytest.approx(25)
    pace.learn(192, 0, 128 * 0.001 + 64 * 0.004, listed=64)
    assert pace.tokens / pace.weight == pytest.approx(25)
    assert pace.rate == pytest.approx(1000), "plain tokens are as they were"
    assert Pace(seconds=0.0, most=2048, size=16).weight == 1.0


def test_a_prompt_with_log_probabilities_takes_the_time_of_one_without_beside_decodes() -> None:
    engine = EchoEngine(echo_spec(4), 400, SchedulerLimits(8, 256))
    engine.scheduler.prompt_limit, engine.scheduler.listed_weight = 64, 4.0
    engine.add("alone", list(range(100)), SamplingParams(max_tokens=30, prompt_logprobs=2))
    engine.step()
    assert engine.last_step == {"alone": 100}, "nobody waits"
    engine.add("listed", list(range(200, 300)), SamplingParams(max_tokens=20, prompt_logprobs=2))
    engine.step()
    assert engine.last_step == {"alone": 1, "listed": 16}
    engine.add("plain", list(range(300, 400)), SamplingParams(max_tokens=20))
    engine.step()
    assert engine.last_step == {"alone": 1, "listed": 8, "plain": 32}
    engine.run()
