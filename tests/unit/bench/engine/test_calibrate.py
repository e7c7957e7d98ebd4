"""Calibration: known costs come back out of the fit, and the file is what the planner reads."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvtrove.bench.engine.calibrate import Cell, calibrate, calibrate_engine, design
from kvtrove.bench.engine.limits import Limits
from kvtrove.bench.engine.subject import CHUNK, Subject
from kvtrove.bench.engine.timing import silent
from kvtrove.config import ConfigError
from kvtrove.plan.cost import FittedCost, work_of
from kvtrove.plan.hardware import StepFit, read_calibration, write_calibration
from kvtrove.scheduler.output import ModelOutput, SchedulerOutput

TICK = 1e-6
COSTS = StepFit(fixed=0.002, per_token=3e-5, per_cached_token=4e-8, per_pair=5e-9, per_sequence=2e-4)


@dataclass
class Machine:
    """A clock that ticks when it is read, and a runner whose steps take exactly COSTS on it."""

    runner: Any
    now: float = 0.0

    def __call__(self) -> float:
        self.now += TICK
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def execute(self, step: SchedulerOutput) -> ModelOutput:
        self.now += FittedCost(COSTS).seconds(work_of(step.sequences))
        return self.runner.execute(step)  # type: ignore[no-any-return]


def test_known_costs_come_back(config: str, tmp_path: Path) -> None:
    engine = Subject(random_weights=config).start(8, 512)
    machine = Machine(engine.runner)
    engine.runner = machine  # type: ignore[assignment]
    limits = Limits(("bfloat16",), "cpu", machine)
    found = calibrate_engine(engine, 8, 2, limits, watch=silent, clock=machine, name="m")
    fit = found.machine.fit
    assert fit is not None
    assert fit.fixed == pytest.approx(COSTS.fixed + TICK, rel=1e-6)
    assert fit.per_token == pytest.approx(COSTS.per_token, rel=1e-6)
    assert fit.per_cached_token == pytest.approx(COSTS.per_cached_token, rel=1e-6)
    assert fit.per_pair == pytest.approx(COSTS.per_pair, rel=1e-6)
    assert fit.per_sequence == pytest.approx(COSTS.per_sequence, rel=1e-6)
    assert found.error < 1e-9
    assert found.machine.bandwidth == pytest.approx((1 << 16) / TICK)
    assert found.num_steps == 3 * len(design(8, 512, 32))
    assert engine.kv.check() == []
    assert engine.kv.stats().used == 0
    write_calibration(tmp_path / "c.json", found.machine)
    assert read_calibration(tmp_path / "c.json") == found.machine


@pytest.mark.parametrize(
    ("batch", "context", "block"), list(itertools.product((1, 3, 16, 256), (64, 100, 4096, 131072), (8, 32)))
)
def test_every_cell_of_a_design_fits(batch: int, context: int, block: int) -> None:
    cells = design(batch, context, block)
    assert len(set(cells)) == len(cells) >= 4
    for cell in cells:
        assert cell.sequences <= batch
        assert cell.cached % block == 0
        assert cell.cached + cell.new + 3 <= context, "a prompt and three drawn tokens"
        assert cell.sequences * cell.new <= CHUNK
    assert Cell(batch, context // 2 // block * block, 1) in cells


def test_ctrl_c_after_a_round_keeps_that_round(config: str) -> None:
    reached: list[int] = []

    def clock() -> float:
        if reached[-1:] == [1]:
            raise KeyboardInterrupt
        return time.perf_counter()

    def watch(what: str, done: int, total: int) -> None:
        reached.append(done)

    found = calibrate(Subject(random_weights=config), 2, 64, 3, watch=watch, clock=clock)
    assert found.interrupted
    assert reached == [0, 1]
    assert found.machine.fit is not None


def test_ctrl_c_in_the_first_round_has_nothing_to_show(config: str) -> None:
    engine = Subject(random_weights=config).start(2, 64)
    limits = Limits(("bfloat16",), "cpu", time.perf_counter)

    def clock() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_engine(engine, 2, 3, limits, watch=silent, clock=clock, name="m")


@pytest.mark.parametrize(
    ("batch", "context", "repeats", "message"),
    [
        (0, 128, 1, "batch: 0 must be at least 1"),
        (2, 16, 1, "--context 64 works"),
        (2, 9999, 1, "9999 tokens are more than the 512 positions"),
        (2, 128, 0, "repeats: 0 must be at least 1"),
    ],
)
def test_what_cannot_be_calibrated(config: str, batch: int, context: int, repeats: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(Subject(random_weights=config), batch, context, repeats)
