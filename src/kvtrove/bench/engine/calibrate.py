"""Step times over a small design -> the calibration file that `kvtrove plan` and `kvtrove simulate` read."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from random import Random
from statistics import median

from kvtrove.bench.engine.decode import check_repeats
from kvtrove.bench.engine.fill import filled
from kvtrove.bench.engine.limits import Limits
from kvtrove.bench.engine.subject import CHUNK, Subject, greedy, random_prompts
from kvtrove.bench.engine.timing import Clock, Watch, rounds, silent
from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.plan.calibrate import fit_steps
from kvtrove.plan.cost import FittedCost, StepWork, work_of
from kvtrove.plan.hardware import Machine, StepFit

DECODES = 2
"""Steps of one token per sequence after the step that computes the prompts."""
LIMITS_EVERY = 4  # cells
SHORTEST = 64  # tokens: below, the cells of the design are all alike


@dataclass(frozen=True)
class Cell:
    """`sequences` prompts of `cached` tokens that are in the cache and `new` that are not: one step, then DECODES."""

    sequences: int
    cached: int
    new: int


@dataclass(frozen=True)
class Calibration:
    """machine: what the file says. error: median relative error of the fit over the measured steps."""

    machine: Machine
    error: float
    num_steps: int
    interrupted: bool


def design(batch: int, context: int, block_size: int) -> list[Cell]:
    """Cells that part the four costs of a step: its start, its tokens, what decodes read, what prompts attend to.

    All lengths are at most `context`, all steps at most CHUNK tokens.
    """
    half, quarter = (context // part // block_size * block_size for part in (2, 4))
    few = max(1, batch // 4)
    new = min(CHUNK // 2, context // 4)
    cells = [
        Cell(1, 0, max(2, new // 8)),
        Cell(1, 0, new),
        Cell(1, half, new),
        Cell(1, half, 1),
        Cell(few, 0, max(2, min(new, CHUNK // few) // 4)),
        Cell(few, quarter, 1),
        Cell(few, half, 1),
        Cell(batch, 0, 2),
        Cell(batch, quarter, 1),
        Cell(batch, half, 1),
    ]
    return list(dict.fromkeys(cells))


def calibrate(
    subject: Subject,
    batch: int,
    context: int,
    repeats: int,
    *,
    watch: Watch = silent,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Measure the design `repeats` times in random order, and the limits in between; fit the medians.

    ConfigError when batch or context do not fit.
    """
    check_repeats(repeats)
    subject.check_context(context)
    if context < SHORTEST:
        raise ConfigError(f"context: {context} tokens tell nothing about longer ones; --context {SHORTEST} works")
    engine = subject.start(batch, context)
    limits = Limits(("bfloat16",), engine.runner.arena.device, clock)
    return calibrate_engine(engine, batch, repeats, limits, watch=watch, clock=clock, name=subject.plan.name)


def calibrate_engine(
    engine: Engine, batch: int, repeats: int, limits: Limits, *, watch: Watch, clock: Clock, name: str
) -> Calibration:
    """The same for an idle engine that holds `batch` sequences of `engine.max_model_len` tokens."""
    random = Random(0)
    cells = design(batch, engine.max_model_len, engine.kv.block_size)
    seconds: dict[tuple[Cell, int], list[float]] = defaultdict(list)
    works: dict[tuple[Cell, int], StepWork] = {}

    def once(number: int) -> None:
        for index, cell in enumerate(random.sample(cells, len(cells))):
            if index % LIMITS_EVERY == 0:
                limits.sample()
            for step, (work, took) in enumerate(_measure(engine, cell, random, clock)):
                works[cell, step] = work
                seconds[cell, step].append(took)

    interrupted = rounds("calibrating", repeats, once, watch)
    samples = [(work, median(seconds[key])) for key, work in works.items()]
    fit = fit_steps(samples)
    bandwidth, flops = limits.read_gb_per_s.value, limits.matmul_tflop_per_s["bfloat16"].value
    assert bandwidth is not None
    assert flops is not None
    machine = Machine(name, bandwidth * 1e9, flops * 1e12, measured=True, fit=fit)
    return Calibration(machine, _error(fit, samples), len(samples), interrupted)


def _measure(engine: Engine, cell: Cell, random: Random, clock: Clock) -> list[tuple[StepWork, float]]:
    """(work, seconds) of the cell's steps. Afterwards the engine is idle and its prefix cache empty."""
    prompts = random_prompts(engine, cell.sequences, cell.cached + cell.new, random)
    measured = []
    with filled(engine, prompts, cell.cached):
        for number, prompt in enumerate(prompts):
            engine.add(str(number), prompt, greedy(1 + DECODES))
        while engine.has_unfinished_requests():
            start = clock()
            engine.step()
            took = clock() - start
            assert engine.last_step is not None
            measured.append((work_of(engine.last_step.sequences), took))
    engine.reset_prefix_cache()
    return measured


def _error(fit: StepFit, samples: list[tuple[StepWork, float]]) -> float:
    cost = FittedCost(fit)
    return median(abs(cost.seconds(work) / took - 1) for work, took in samples)
