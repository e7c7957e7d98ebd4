"""`kvtrove bench decode`, `calibrate` ...: measure an engine in this process beside the limits of the machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove.cli.command import Command
from kvtrove.cli.flags import flag, setting, spread
from kvtrove.cli.options import NAMES, QuietFlag
from kvtrove.cli.output import INTERRUPTED, check_folders, console, write_json
from kvtrove.config import EngineConfig, parse_tokens
from kvtrove.names import find_model

if TYPE_CHECKING:
    from kvtrove.bench.engine.result import Measurement
    from kvtrove.bench.engine.subject import Subject
    from kvtrove.bench.engine.timing import Watch

_subject, _cell = functools.partial(flag, "Model"), functools.partial(flag, "Cell")
_output = functools.partial(flag, "Output")


@dataclass(frozen=True)
class SubjectOptions:
    """Fields of bench.engine.subject.Subject, as text."""

    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=NAMES)] = None
    random_weights: Annotated[
        str | None, _subject("FILE", "A config.json: random weights instead of a checkpoint.")
    ] = None
    dtype: Annotated[str, _subject("TYPE", "Of the weights: auto, bfloat16, float16 or float32.")] = "auto"
    weights: Annotated[str, _subject("TYPE", "auto, int8 or int4: quantise matrices at load (CPU).")] = "auto"
    cache: Annotated[str, setting("cache", "Model")] = EngineConfig.cache
    device: Annotated[str, _subject("DEVICE", "auto, cpu, cuda or cuda:N.")] = "auto"
    block_size: Annotated[int, setting("block_size", "Model")] = EngineConfig.block_size
    memory: Annotated[str | None, _subject("SIZE", "That may be used. Default: what is free.")] = None

    def subject(self) -> Subject:
        from kvtrove.bench.engine.subject import Subject

        model = None if self.model is None else str(find_model(self.model))
        return Subject(**asdict(self) | {"model": model})


JsonFile = Annotated[str | None, _output("FILE", "Write everything that was measured; - is stdout.")]
Batch = Annotated[int, _cell("N", "Sequences in a step.")]
Repeats = Annotated[int, _cell("N", "Rounds; each samples the machine's limits as well.")]


@spread
def calibrate(
    subject: SubjectOptions,
    out: Annotated[Path, _output("FILE", "The calibration, for `kvtrove plan` and `simulate --calibration`.")],
    batch: Batch = 16,
    context: Annotated[str | None, _cell("TOKENS", "Longest sequence. Default: 4096, or the model's if less.")] = None,
    repeats: Repeats = 3,
    quiet: QuietFlag = False,
) -> None:
    """Measure how long steps take on this machine, and write the file from which the planner predicts them.

    Example: kvtrove bench calibrate demo --out calibration.json
    """
    from kvtrove.bench.engine.calibrate import calibrate as measure
    from kvtrove.plan.hardware import write_calibration

    check_folders(str(out))
    chosen = subject.subject()
    tokens = min(4096, chosen.plan.max_position) if context is None else parse_tokens(context, "context")
    with _watching(chosen, quiet) as (watched, watch):
        found = measure(watched, batch, tokens, repeats, watch=watch)
    write_calibration(out, found.machine)
    if not quiet:
        from kvtrove.bench.engine.tables import calibration_table

        console().print(calibration_table(found, str(out)))
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)


@spread
def decode(
    subject: SubjectOptions,
    batch: Batch = 1,
    context: Annotated[str, _cell("TOKENS", "Of each sequence.")] = "1024",
    repeats: Repeats = 5,
    json: JsonFile = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure a decode step: milliseconds, tokens/s, and its share of the speed of memory.

    Example: kvtrove bench decode --random-weights config.json --batch 32 --context 1024 --cache bf16
    """

    def measure(measured: Subject, watch: Watch) -> Measurement:
        from kvtrove.bench.engine.decode import measure_decode

        return measure_decode(measured, batch, parse_tokens(context, "context"), repeats, watch=watch)

    _run(subject, measure, json, quiet)


@spread
def prefill(
    subject: SubjectOptions,
    prompt: Annotated[str, _cell("TOKENS", "Computed from the first one on.")] = "2048",
    repeats: Repeats = 3,
    json: JsonFile = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure a prompt: tokens/s, TFLOP/s, and its share of the peak of matrix products.

    Example: kvtrove bench prefill --random-weights config.json --prompt 2048
    """

    def measure(measured: Subject, watch: Watch) -> Measurement:
        from kvtrove.bench.engine.prefill import measure_prefill

        return measure_prefill(measured, parse_tokens(prompt, "prompt"), repeats, watch=watch)

    _run(subject, measure, json, quiet)


@spread
def ttft(
    subject: SubjectOptions,
    prefix: Annotated[str, _cell("TOKENS", "That two requests share.")] = "8192",
    repeats: Repeats = 3,
    json: JsonFile = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure the time to the first token, cold and with the prefix in the cache.

    Example: kvtrove bench ttft --random-weights config.json --prefix 8192
    """

    def measure(measured: Subject, watch: Watch) -> Measurement:
        from kvtrove.bench.engine.ttft import measure_ttft

        return measure_ttft(measured, parse_tokens(prefix, "prefix"), repeats, watch=watch)

    _run(subject, measure, json, quiet)


@spread
def mixed(
    subject: SubjectOptions,
    requests: Annotated[int, _cell("N", "All at once; prompts of 100-1500 tokens, answers of 32-128.")] = 64,
    batch: Batch = 64,
    repeats: Repeats = 1,
    json: JsonFile = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure a mixed workload without a server: seconds until all is answered. Half of the requests share 512 tokens.

    Example: kvtrove bench mixed --random-weights config.json
    """

    def measure(measured: Subject, watch: Watch) -> Measurement:
        from kvtrove.bench.engine.mixed import measure_mixed

        return measure_mixed(measured, requests, batch, repeats, watch=watch)

    _run(subject, measure, json, quiet)


@spread
def kernel(
    subject: SubjectOptions,
    batch: Batch = 8,
    context: Annotated[str, _cell("TOKENS", "Of each sequence that attends.")] = "1024",
    repeats: Repeats = 3,
    only: Annotated[str | None, _cell("KIND", "copy_rows, attention or linear.")] = None,
    json: JsonFile = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure kernels by themselves: GB/s and TFLOP/s beside what the machine can read and multiply.

    Example: kvtrove bench kernel --random-weights config.json --only attention --batch 32
    """

    def measure(measured: Subject, watch: Watch) -> Measurement:
        from kvtrove.bench.engine.kernels import measure_kernels

        return measure_kernels(measured, batch, parse_tokens(context, "context"), repeats, only, watch=watch)

    _run(subject, measure, json, quiet)


def _run(
    options: SubjectOptions, measure: Callable[[Subject, Watch], Measurement], json: str | None, quiet: bool
) -> None:
    """Measure, write, show; exit code 130 when Ctrl-C ended it, with what was measured until then."""
    from kvtrove import __version__
    from kvtrove.bench.engine.result import as_json
    from kvtrove.bench.engine.tables import measurement_table

    check_folders(json)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with _watching(options.subject(), quiet) as (subject, watch):
        found = measure(subject, watch)
    write_json(as_json(found, __version__, started), json)
    if not quiet:
        console(to_stderr=json == "-").print(measurement_table(found))
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _watching(subject: Subject, quiet: bool) -> Iterator[tuple[Subject, Watch]]:
    """The subject and a Watch that both draw bars on a terminal's stderr."""
    from kvtrove.bench.engine.timing import silent
    from kvtrove.progress import loading

    with loading(not quiet) as report:
        yield replace(subject, progress=report), report or silent


def register(bench: typer.Typer) -> None:
    """Put the commands of this file into the group."""
    for command in (decode, prefill, ttft, mixed, kernel, calibrate):
        bench.command(cls=Command)(command)
