"""Time to the first token of a long prompt: computed, and found in the prefix cache."""

from __future__ import annotations

import time
from random import Random

from kvtrove.bench.engine.decode import check_repeats, limit_figures, limits_of
from kvtrove.bench.engine.prefill import seconds_to_first_token
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.engine.subject import Subject, random_prompts
from kvtrove.bench.engine.timing import Clock, Samples, Watch, ratio, rounds, scaled, silent
from kvtrove.config import ConfigError

QUESTION = 16
"""Tokens behind the prefix, different in every request."""


def measure_ttft(
    subject: Subject, prefix: int, repeats: int, *, watch: Watch = silent, clock: Clock = time.perf_counter
) -> Measurement:
    """Each round: a new prefix with a question (cold), then the same prefix with another question (hit)."""
    check_repeats(repeats)
    if prefix < subject.block_size:
        raise ConfigError(
            f"prefix: {prefix} tokens are less than a block, which is what the prefix cache shares; "
            f"--prefix {subject.block_size} works"
        )
    subject.check_context(prefix + QUESTION + 1)
    engine = subject.start(2, prefix + QUESTION + 1, prefix)
    limits, random, samples = limits_of(engine, clock), Random(0), Samples()
    hits = []

    def once(number: int) -> None:
        limits.sample()
        [shared] = random_prompts(engine, 1, prefix, random)
        for kind, question in zip(("cold", "hit"), random_prompts(engine, 2, QUESTION, random), strict=True):
            before = engine.kv.stats().hits
            samples.add(f"{kind}_s", seconds_to_first_token(engine, shared + question, clock))
            hits.append(engine.kv.stats().hits - before)

    interrupted = rounds("first tokens", repeats, once, watch)
    cold, hit = (scaled(samples.median(f"{kind}_s"), 1e3) for kind in ("cold", "hit"))
    figures = {"cold_ms": cold, "hit_ms": hit, "speedup": ratio(cold, hit), **limit_figures(limits)}
    facts = {"cold_cached_tokens": min(hits[::2]), "hit_cached_tokens": min(hits[1::2])}
    settings = subject.settings() | {"prefix": prefix, "question": QUESTION, "repeats": repeats}
    return Measurement("ttft", settings, figures, facts, samples.values, interrupted=interrupted)
