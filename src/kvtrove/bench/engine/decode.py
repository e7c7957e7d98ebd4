"""A decode step: every sequence of a batch draws one token over a context that is cached already."""

from __future__ import annotations

import time
from collections.abc import Mapping
from random import Random
from typing import Any

from kvtrove.bench.engine.fill import NOTE, filled
from kvtrove.bench.engine.limits import Limits
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.engine.subject import Subject, greedy, random_prompts
from kvtrove.bench.engine.timing import Clock, Samples, Watch, over, ratio, rounds, scaled, silent
from kvtrove.bench.engine.work import kv_bytes_read, state_bytes_moved, weight_bytes_read
from kvtrove.bench.summary import Figure
from kvtrove.config import ConfigError
from kvtrove.engine import Engine

STEPS = 4
"""Of a round, after one sample of the machine's limits; the first step finds cold caches and is not counted."""
WARMUP = 2
STEP = "step_s"


def measure_decode(
    subject: Subject, batch: int, context: int, repeats: int, *, watch: Watch = silent, clock: Clock = time.perf_counter
) -> Measurement:
    """`repeats` rounds of STEPS steps around `context` tokens, as near as whole blocks allow (`cached_tokens`).

    | cached, whole blocks | 1 token | WARMUP steps | round | round | round |
                                                              ^ context
    """
    check_repeats(repeats)
    subject.check_context(context)
    steps = 1 + WARMUP + repeats * STEPS
    cached = _cached(subject, context, steps)
    engine = subject.start(batch, cached + 1 + steps, context)
    limits = limits_of(engine, clock)
    prompts = random_prompts(engine, batch, cached + 1, Random(0))
    samples = Samples()
    with filled(engine, prompts, cached):
        for number, prompt in enumerate(prompts):
            engine.add(str(number), prompt, greedy(steps))
        engine.step()  # one token each, so all are admitted at once
    for _ in range(WARMUP):
        engine.step()
    starts: list[int] = []
    read: list[int] = []

    def once(number: int) -> None:
        limits.sample()
        for step in range(STEPS):
            start = clock()
            engine.step()
            seconds = clock() - start
            if step:
                samples.add(STEP, seconds)
                assert engine.last_step is not None
                positions = [s.start for s in engine.last_step.sequences]
                starts.extend(positions)
                read.append(kv_bytes_read(engine.runner.cache, positions))

    interrupted = rounds("decoding", repeats, once, watch)
    facts = {
        "weight_bytes": weight_bytes_read(subject.plan, batch),
        "kv_bytes": round(sum(read) / len(read)),
        "state_bytes": state_bytes_moved(engine.runner.cache, batch),
        "cached_tokens": sum(starts) / len(starts) + 1,
        "cache": "random values",
        "reading": limits.reading,
    }
    settings = subject.settings() | {"batch": batch, "context": context, "repeats": repeats}
    figures = _figures(samples, limits, batch, facts)
    return Measurement("decode", settings, figures, facts, samples.values, (NOTE,), interrupted)


def check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise ConfigError(f"repeats: {repeats} must be at least 1")


def _cached(subject: Subject, context: int, steps: int) -> int:
    """Tokens in whole blocks before the first step, so that the middle of `steps` steps is nearest to `context`."""
    size, room = subject.block_size, subject.plan.max_position - steps - 1
    if room < 0:
        most = (subject.plan.max_position - 2 - WARMUP) // STEPS
        raise ConfigError(
            f"repeats: {steps} steps are more than the model's {subject.plan.max_position} positions; "
            + (f"--repeats {most} works" if most >= 1 else "the model is too short to be measured")
        )
    wanted = max(0, round((context - steps / 2) / size)) * size
    return min(wanted, room // size * size)


def limits_of(engine: Engine, clock: Clock) -> Limits:
    """Of the device of an engine; products in the dtype that it computes in, and in bfloat16 and float32."""
    dtype = engine.runner.model.precision.activations
    return Limits((dtype, "bfloat16", "float32"), engine.runner.arena.device, clock)


def limit_figures(limits: Limits) -> dict[str, Figure]:
    """Under the names of the JSON."""
    products = {f"matmul_tflop_per_s.{dtype}": figure for dtype, figure in limits.matmul_tflop_per_s.items()}
    peaks = {f"peak_tflop_per_s.{dtype}": figure for dtype, figure in limits.instructions_tflop_per_s.items()}
    return {"read_gb_per_s": limits.read_gb_per_s, **products, **peaks}


def _figures(samples: Samples, limits: Limits, batch: int, facts: Mapping[str, Any]) -> dict[str, Figure]:
    step = scaled(samples.median(STEP), 1e3)
    limit = over((facts["weight_bytes"] + facts["kv_bytes"] + facts["state_bytes"]) * 1e-6, limits.read_gb_per_s)
    return {
        "step_ms": step,
        "limit_ms": limit,
        "efficiency": ratio(limit, step),
        "tokens_per_s": over(batch * 1e3, step),
        **limit_figures(limits),
    }
