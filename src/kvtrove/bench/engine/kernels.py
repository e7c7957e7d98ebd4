"""The kernels by themselves: bytes and products per second of each, beside what the machine can do at best.

What is run is in kernel_cases.py; timing, limits and figures are here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from kvtrove.bench.engine.decode import check_repeats, limit_figures, limits_of
from kvtrove.bench.engine.kernel_cases import KERNELS, Bench, Case
from kvtrove.bench.engine.limits import synchronize
from kvtrove.bench.engine.result import Measurement
from kvtrove.bench.engine.subject import Subject
from kvtrove.bench.engine.timing import Clock, Samples, Watch, over, rounds, scaled, silent
from kvtrove.bench.summary import Figure
from kvtrove.config import ConfigError, nearest


def measure_kernels(
    subject: Subject,
    batch: int,
    context: int,
    repeats: int,
    only: str | None = None,
    *,
    watch: Watch = silent,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Every case once per round, the limits in between. only: one kind of kernel."""
    check_repeats(repeats)
    subject.check_context(context)
    if only is not None and only not in KERNELS:
        raise ConfigError(f"only: {only!r} is not one of {', '.join(KERNELS)}{nearest(only, KERNELS)}")
    engine = subject.start(batch, min(subject.plan.max_position, context + 2 * subject.block_size), context)
    limits, samples = limits_of(engine, clock), Samples()
    device = engine.runner.arena.device
    found: dict[str, Case] = {}
    interrupted = False
    for case in _cases(only, Bench(subject.plan, engine, batch, context)):
        case.run()
        found[case.name] = case
        interrupted = rounds(case.name, repeats, _timed(case, limits.sample, samples, device, clock), watch)
        if interrupted:
            break
    peak = limits.peak_tflop_per_s(subject.plan.dtype)
    figures = limit_figures(limits)
    for case in found.values():
        figures |= _figures(case, samples.median(case.name), limits.read_gb_per_s, peak)
    settings = subject.settings() | {"batch": batch, "context": context, "repeats": repeats}
    return Measurement("kernel", settings, figures, {}, samples.values, interrupted=interrupted)


def _cases(only: str | None, bench: Bench) -> Iterator[Case]:
    for kind in KERNELS if only is None else (only,):
        yield from KERNELS[kind](bench)


def _timed(
    case: Case, sample: Callable[[], None], samples: Samples, device: str, clock: Clock
) -> Callable[[int], None]:
    @torch.inference_mode()
    def once(number: int) -> None:
        sample()
        start = clock()
        case.run()
        synchronize(device)
        samples.add(case.name, clock() - start)

    return once


def _figures(case: Case, took: Figure, read: Figure, peak: Figure) -> dict[str, Figure]:
    """of_limit: the time that the slower of reading and computing must take / the time taken."""
    assert read.value
    assert peak.value
    least = max(case.nbytes / (read.value * 1e9), case.flops / (peak.value * 1e12))
    return {
        f"kernels.{case.name}.ms": scaled(took, 1e3),
        f"kernels.{case.name}.gb_per_s": scaled(over(case.nbytes, took), 1e-9),
        f"kernels.{case.name}.tflop_per_s": scaled(over(case.flops, took), 1e-12),
        f"kernels.{case.name}.of_limit": over(least, took),
    }
