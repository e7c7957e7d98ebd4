"""A prompt that is computed from its first token on, beside the peak of matrix products."""

from __future__ import annotations

import time
from array import array
from random import Random

from kvtrove.bench.engine.decode import check_repeats, limit_figures, limits_of
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.bench.engine.timing import Clock, Samples, Watch, over, ratio, rounds, scaled, silent
from kvtrove.bench.engine.work import prefill_flops
from kvtrove.engine import Engine

PREFILL = "prefill_s"


def measure_prefill(
    subject: Subject, prompt: int, repeats: int, *, watch: Watch = silent, clock: Clock = time.perf_counter
) -> Measurement:
    """Time until the first token of a prompt of `prompt` tokens, of which nothing is cached, with nothing beside it."""
    check_repeats(repeats)
    subject.check_context(prompt + 1)
    engine = subject.start(1, prompt + 1)
    limits, random, samples = limits_of(engine, clock), Random(0), Samples()
    flops = _flops(subject, engine, random_prompts(engine, 1, prompt, random)[0])

    def once(number: int) -> None:
        limits.sample()
        [tokens] = random_prompts(engine, 1, prompt, random)
        samples.add(PREFILL, seconds_to_first_token(engine, tokens, clock))

    interrupted = rounds("prefill", repeats, once, watch)
    took = scaled(samples.median(PREFILL), 1e3)
    peak = limits.peak_tflop_per_s(subject.plan.dtype)
    limit = over(flops * 1e-9, peak)
    figures = {
        "prefill_ms": took,
        "limit_ms": limit,
        "efficiency": ratio(limit, took),
        "tokens_per_s": over(prompt * 1e3, took),
        "tflop_per_s": over(flops * 1e-9, took),
        **limit_figures(limits),
    }
    settings = subject.settings() | {"prompt": prompt, "repeats": repeats}
    return Measurement("prefill", settings, figures, {"flops": flops}, samples.values, interrupted=interrupted)


def seconds_to_first_token(engine: Engine, tokens: array[int], clock: Clock) -> float:
    """Of one request on an idle engine, which forgets nothing of it."""
    start = clock()
    engine.add("prompt", tokens, greedy(1))
    while engine.has_unfinished_requests():
        engine.step()
    return clock() - start


def _flops(subject: Subject, engine: Engine, tokens: array[int]) -> float:
    """Of a whole prompt, added up over the steps that it takes; this run is also the warm-up."""
    engine.add("warm-up", tokens, greedy(1))
    total = 0.0
    while engine.has_unfinished_requests():
        engine.step()
        assert engine.last_step is not None
        total += prefill_flops(subject.plan, engine.last_step.sequences)
    return total
