"""Starting points for common machines. Only their memory is typed in; everything else the planner derives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtrove.config import ConfigError
from kvtrove.plan.fitting import Wishes
from kvtrove.plan.model import PlanModel
from kvtrove.plan.planner import Plan, make_plan

GIB = 2**30
DEVICES = (8, 16, 24, 80)
HOSTS = (16, 64, 256)


@dataclass(frozen=True)
class Preset:
    """name: ``"24 GB device"``. plan is None when the model does not fit; why then says what would."""

    name: str
    memory: int
    plan: Plan | None
    why: str = ""


def presets(model: PlanModel, wishes: Wishes) -> Iterator[Preset]:
    """What each machine gives with these wishes; `wishes.memory` is replaced."""
    for kind, sizes in (("device", DEVICES), ("host", HOSTS)):
        for size in sizes:
            memory = size * GIB
            try:
                yield Preset(f"{size} GB {kind}", memory, make_plan(model, replace(wishes, memory=memory)))
            except ConfigError as error:
                yield Preset(f"{size} GB {kind}", memory, None, str(error))
