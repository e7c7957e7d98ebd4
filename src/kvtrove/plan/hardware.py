"""How fast a machine is: datasheet figures, or those that a benchmark measured and wrote into a calibration file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError, nearest

CALIBRATION = "kvtrove-calibration-1"


@dataclass(frozen=True)
class StepFit:
    """Seconds of a measured step: fixed + per token computed + per cached token read + per (query, key) pair
    + per sequence that takes part, which for small models is most of a decode step + per prompt that is computed, or a
    part of it: what a request costs beside its tokens.
    """

    fixed: float
    per_token: float
    per_cached_token: float
    per_pair: float
    per_sequence: float = 0.0
    per_prompt: float = 0.0


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes read per second. flops: of 16-bit matrix products, per second. Sustained when measured.

    fit: measured step times of the very model that is planned; it replaces the model of bandwidth and flops.
    """

    name: str
    bandwidth: float
    flops: float
    measured: bool = False
    fit: StepFit | None = None


DATASHEETS: Mapping[str, Machine] = {
    name: Machine(name, bandwidth, flops)
    for name, bandwidth, flops in (
        ("ddr4-2ch", 40e9, 0.6e12),
        ("ddr5-2ch", 80e9, 1.2e12),
        ("ddr5-8ch", 300e9, 10e12),
        ("ddr5-12ch", 500e9, 20e12),
        ("rtx3090", 936e9, 71e12),
        ("rtx4090", 1008e9, 165e12),
        ("rtx5090", 1792e9, 209e12),
        ("l4", 300e9, 121e12),
        ("l40s", 864e9, 362e12),
        ("a10", 600e9, 125e12),
        ("a100", 2039e9, 312e12),
        ("h100", 3350e9, 989e12),
        ("h200", 4800e9, 989e12),
    )
}
ASSUMED = "ddr4-2ch"
"""Of a host that nobody measured: the slowest that is common, so that estimates err on the safe side."""


def find_machine(name: str) -> Machine:
    """By the name of its datasheet. ConfigError with the nearest one."""
    if name not in DATASHEETS:
        raise ConfigError(f"hardware: {name!r} is not one of {', '.join(DATASHEETS)}{nearest(name, DATASHEETS)}")
    return DATASHEETS[name]


def recognise(device_name: str) -> Machine | None:
    """The datasheet of a CUDA device by the name that its driver gives: ``"NVIDIA H200" -> h200``."""
    words = device_name.lower().replace(" ", "").replace("geforce", "")
    found = [name for name in DATASHEETS if name in words]
    return DATASHEETS[max(found, key=len)] if found else None


def read_calibration(path: Path) -> Machine:
    """The machine that a calibration file describes. ConfigError naming the field that is missing or wrong.

    {"format": "kvtrove-calibration-1", "name": "...", "bandwidth": 3.1e10, "flops": 2.2e12,
     "step": {"fixed": 0.001, "per_token": 2e-5, "per_cached_token": 1e-8, "per_pair": 1e-10,
              "per_sequence": 2e-5}}                       step, per_sequence and per_prompt may be left out
    """
    try:
        values: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"calibration: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"calibration: {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != CALIBRATION:
        raise ConfigError(f"calibration: {path} is no calibration file: 'format' is not {CALIBRATION!r}")
    step = values.get("step")
    return Machine(
        str(values.get("name", path.stem)),
        _positive(values, "bandwidth", path),
        _positive(values, "flops", path),
        measured=True,
        fit=None if step is None else _step_fit(step, path),
    )


def _step_fit(step: Any, path: Path) -> StepFit:
    if isinstance(step, dict):
        step = {"per_sequence": 0.0, "per_prompt": 0.0, **step}
    return StepFit(**{name: _number(step, name, path) for name in StepFit.__dataclass_fields__})


def write_calibration(path: Path, machine: Machine) -> None:
    values = {"format": CALIBRATION, "name": machine.name, "bandwidth": machine.bandwidth, "flops": machine.flops}
    step = {} if machine.fit is None else {"step": vars(machine.fit)}
    path.write_text(json.dumps({**values, **step}, indent=1))


def _number(values: Any, name: str, path: Path) -> float:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"calibration: {path}: {name!r} is {value!r}, expected a number of at least 0")
    return float(value)


def _positive(values: Any, name: str, path: Path) -> float:
    value = _number(values, name, path)
    if value == 0:
        raise ConfigError(f"calibration: {path}: {name!r} is 0, expected a number above 0")
    return value
