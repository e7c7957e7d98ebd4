"""All checks, in the order in which they are shown."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvtrove import __version__
from kvtrove.doctor import memory, processor, speed
from kvtrove.doctor.check import Check

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2", "typer", "rich")


@dataclass(frozen=True)
class Report:
    versions: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def warnings(self) -> list[Check]:
        return [check for check in self.checks if check.state == "warning"]

    def as_json(self) -> dict[str, Any]:
        """Checks by name; see `Check` for the fields."""
        return {"versions": self.versions, "checks": {check.name: asdict(check) for check in self.checks}}


def examine(root: Path = Path("/"), *, measure: bool = True) -> Report:
    """Look at everything. root: where proc and sys are (tests bring their own). measure: the speed too, for 3 s."""
    versions = {"kvtrove": __version__, "python": platform.python_version()}
    checks = [*processor.examine(root), *memory.examine(root)]
    if measure:
        [available] = [check.value["available"] for check in checks if check.name == "memory"]
        checks += speed.examine(available)
    return Report(versions | {name: _version(name) for name in PACKAGES}, tuple(checks))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
