"""Many different requests at once, in this process: how long until the last one is answered?"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from random import Random

from kvtrove.bench.engine.decode import check_repeats, limit_figures, limits_of
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.bench.engine.timing import Clock, Samples, Watch, median, over, rounds, scaled, silent
from kvtrove.config import ConfigError
from kvtrove.engine import Engine

PROMPTS, ANSWERS = (100, 1500), (32, 128)
"""Shortest and longest, in tokens; drawn evenly."""
SHARED = 512
"""Tokens with which every second prompt begins (or as many as it has, less one)."""


@dataclass(frozen=True)
class Ask:
    prompt: array[int]
    max_tokens: int


def workload(engine: Engine, requests: int, longest: int, random: Random) -> list[Ask]:
    """The same for the same seed. longest: of prompt and answer together; prompts are cut to it."""
    [shared] = random_prompts(engine, 1, SHARED, random)
    asked = []
    for number in range(requests):
        answer = random.randint(*ANSWERS)
        length = min(random.randint(*PROMPTS), longest - answer)
        [prompt] = random_prompts(engine, 1, length, random)
        common = min(SHARED, length - 1) if number % 2 else 0
        asked.append(Ask(shared[:common] + prompt[common:], answer))
    return asked


def measure_mixed(
    subject: Subject, requests: int, batch: int, repeats: int, *, watch: Watch = silent, clock: Clock = time.monotonic
) -> Measurement:
    """Rounds of `requests` requests that all arrive at once, `batch` of them in a step at most.

    Each round asks the same and begins with an empty prefix cache. Ctrl-C keeps the rounds that are complete.
    """
    check_repeats(repeats)
    if requests < 1:
        raise ConfigError(f"requests: {requests} must be at least 1")
    longest = min(PROMPTS[1] + ANSWERS[1], subject.plan.max_position)
    if longest < PROMPTS[0] + ANSWERS[1]:
        raise ConfigError(
            f"the mixed workload needs a model of at least {PROMPTS[0] + ANSWERS[1]} positions, this has {longest}"
        )
    engine = subject.start(min(batch, requests), longest)
    limits, samples = limits_of(engine, clock), Samples()
    asked = workload(engine, requests, longest, Random(0))
    hits: list[int] = []

    def once(number: int) -> None:
        limits.sample()
        engine.reset_prefix_cache()
        before = engine.kv.stats().hits
        samples.add("wall_s", _serve(engine, asked, samples, clock))
        hits.append(engine.kv.stats().hits - before)

    interrupted = rounds("mixed requests", repeats, once, watch)
    wall = samples.median("wall_s")
    prompt_tokens, answer_tokens = sum(len(ask.prompt) for ask in asked), sum(ask.max_tokens for ask in asked)
    figures = {
        "wall_s": wall,
        "output_tokens_per_s": over(answer_tokens, wall),
        "tokens_per_s": over(prompt_tokens + answer_tokens, wall),
        "ttft_ms": scaled(median(samples.values["ttft_s"]), 1e3),
        "tpot_ms": scaled(median(samples.values["tpot_s"]), 1e3),
        **limit_figures(limits),
    }
    facts = {"prompt_tokens": prompt_tokens, "output_tokens": answer_tokens, "cached_tokens": max(hits)}
    settings = subject.settings() | {"requests": requests, "batch": min(batch, requests), "repeats": repeats}
    return Measurement("mixed", settings, figures, facts, samples.values, interrupted=interrupted)


def _serve(engine: Engine, asked: list[Ask], samples: Samples, clock: Clock) -> float:
    """Seconds until all are answered; TTFT and TPOT of each go into the samples. An interrupt aborts all requests."""
    first: dict[str, float] = {}
    start = clock()
    try:
        for number, ask in enumerate(asked):
            engine.add(str(number), ask.prompt, greedy(ask.max_tokens))
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = clock()
            for output in outputs:
                begun = first.setdefault(output.request_id, now)
                if output.finished:
                    tokens = asked[int(output.request_id)].max_tokens
                    samples.add("ttft_s", begun - start)
                    samples.add("tpot_s", (now - begun) / (tokens - 1))
    finally:
        for number in range(len(asked)):
            engine.abort(str(number))
    return clock() - start
