"""Faults on demand at every stage of an engine's step, for one request among others. The product knows nothing of this.

with Faults(engine) as faults:
    faults.arm("model", raising(MemoryError), "culprit")
    ... engine.step() fails whenever "culprit" takes part ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from kvtrove.engine import Engine
from kvtrove.runner import model_runner
from kvtrove.scheduler.output import ScheduledSequence
from kvtrove.server.watchdog import Watchdog

Fault = Callable[[], None]
STAGES = ("schedule", "batch", "model", "sampler", "commit", "append", "output")
ATTRIBUTED = ("commit", "append", "output")
"""Stages that work on one request at a time, so that the engine knows at once whose fault it is."""


def raising(kind: type[BaseException]) -> Fault:
    def fault() -> None:
        raise kind("injected")

    return fault


def hanging(seconds: float) -> Fault:
    return lambda: time.sleep(seconds)


class Faults:
    """Wraps the parts of `engine`; `fired` counts. once: the fault passes by after the first time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._patch = pytest.MonkeyPatch()
        self.disarm()

    def disarm(self) -> None:
        self.stage, self.fault, self.culprit, self.once, self.fired = "", raising(RuntimeError), "", False, 0

    def arm(self, stage: str, fault: Fault, culprit: str, once: bool = False) -> None:
        self.stage, self.fault, self.culprit, self.once, self.fired = stage, fault, culprit, once, 0

    def _fire(self, stage: str, present: bool) -> None:
        """Mid-decode, so that there is something to lose."""
        request = self.engine.scheduler.requests.get(self.culprit)
        begun = request is not None and max(seq.num_output for seq in request.sequences) >= 2
        if stage == self.stage and present and begun and not (self.once and self.fired):
            self.fired += 1
            self.fault()

    def _takes_part(self, sequences: Sequence[ScheduledSequence]) -> bool:
        running = self.engine.scheduler.running
        return any(s.seq_id in running and running[s.seq_id].request.id == self.culprit for s in sequences)

    def __enter__(self) -> Faults:
        scheduler, runner, kv = self.engine.scheduler, self.engine.runner, self.engine.kv

        def after(owner: Any, name: str, stage: str, present: Callable[..., bool]) -> None:
            inner = getattr(owner, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = inner(*args, **kwargs)
                self._fire(stage, present(*args))
                return result

            self._patch.setattr(owner, name, wrapped)

        after(scheduler, "schedule", "schedule", lambda: any(
            seq.request.id == self.culprit for seq in scheduler.running.values()
        ))  # fmt: skip
        after(model_runner, "build_batch", "batch", lambda sequences, *_: self._takes_part(sequences))
        after(runner, "forward", "model", lambda step, *_: self._takes_part(step.sequences))
        after(kv, "commit", "commit", lambda handle, *_: any(
            seq.kv is handle and seq.request.id == self.culprit for seq in scheduler.running.values()
        ))  # fmt: skip
        after(scheduler, "_append", "append", lambda seq, *_: seq.request.id == self.culprit)
        self._patch.setattr(runner.sampler, "sample", self._sample(runner.sampler.sample))
        self._patch.setattr(self.engine, "_news", self._news(self.engine._news))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _sample(self, inner: Any) -> Any:
        def sample(logits: torch.Tensor, specs: Sequence[Any], *more: Any) -> Any:
            request = self.engine.scheduler.requests.get(self.culprit)
            rows = [i for i, spec in enumerate(specs) if request is not None and spec.params is request.params]
            if self.stage == "nan" and rows and max(seq.num_output for seq in request.sequences) >= 2:
                self.fired += 1
                logits[rows] = float("nan")
            drawn = inner(logits, specs, *more)
            self._fire("sampler", bool(rows))
            return drawn

        return sample

    def _news(self, inner: Any) -> Any:
        def news(text: Any) -> Any:
            if text.request.error is None:
                self._fire("output", text.request.id == self.culprit)
            return inner(text)

        return news


class Watched:
    """`engine` under a watchdog of `seconds` while this is open, as on a server."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.stuck = 0
        self._engine, self._before = engine, engine.guard
        self._watchdog = Watchdog(seconds, self._on_stuck)

    def _on_stuck(self) -> None:
        self.stuck += 1

    def __enter__(self) -> Watched:
        self._watchdog.start()
        self._engine.guard = lambda: self._watchdog
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.guard = self._before
        self._watchdog.stop()
