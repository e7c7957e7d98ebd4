"""A measurement and its JSON: written by the commands that measure an engine, read by `bench compare`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from kvtrove import kernels
from kvtrove.bench.engine import FORMAT
from kvtrove.bench.summary import Figure


@dataclass(frozen=True)
class Measurement:
    """kind: the command. figures: what was measured; a dot in a name is a level of the JSON. facts: what was counted.

    samples: single values in the order of measuring. notes: what a reader must know. interrupted: ended by hand.
    """

    kind: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Figure]
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interrupted: bool = False

    def value(self, name: str) -> float:
        """A figure that is there."""
        value = self.figures[name].value
        assert value is not None, f"{name} was not measured"
        return value


def machine() -> dict[str, Any]:
    """Of this process: what figures depend on beside the settings."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": kernels.threads(),
        "isa": kernels.isa(),
        "torch": torch.__version__,
    }


def as_json(found: Measurement, version: str, started: str) -> dict[str, Any]:
    """Plain data; keys and their units never change within a format."""
    values: dict[str, Any] = {}
    for name, figure in found.figures.items():
        *path, last = name.split(".")
        level = values
        for part in path:
            level = level.setdefault(part, {})
        level[last] = figure.value
    return {
        "format": FORMAT,
        "kind": found.kind,
        "kvtrove": version,
        "started": started,
        "interrupted": found.interrupted,
        "machine": machine(),
        "settings": dict(found.settings),
        **values,
        **found.facts,
        "notes": list(found.notes),
        "figures": {name: asdict(figure) for name, figure in found.figures.items()},
        "samples": {name: list(values) for name, values in found.samples.items()},
    }
