"""A line of a trace file, and typed access to its fields: every error names file, line, field and value."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError


class TraceError(ConfigError):
    """A trace file that cannot be read; the message names the line and the field."""


@dataclass(frozen=True)
class Line:
    path: Path
    number: int
    text: str

    def error(self, message: str) -> TraceError:
        return TraceError(f"{self.path}, line {self.number}: {message}")

    def json(self) -> Fields:
        """The line as a JSON object."""
        try:
            values = json.loads(self.text)
        except ValueError as error:
            raise self.error(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise self.error(f"holds a {type(values).__name__}, expected a JSON object")
        return Fields(self, values)


@dataclass(frozen=True)
class Fields:
    """An object of a line; `where` is the path to it, such as ``requests[3].``."""

    line: Line
    values: Mapping[str, Any]
    where: str = ""

    def error(self, name: str, expected: str) -> TraceError:
        found = repr(self.values[name]) if name in self.values else "missing"
        return self.line.error(f"'{self.where}{name}' is {found[:40]}, expected {expected}")

    def count(self, name: str, least: int = 0) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(name, f"a whole number of at least {least}")
        return value

    def seconds(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
            raise self.error(name, "a number of at least 0")
        return float(value)

    def ids(self, name: str) -> array[int]:
        value = self.values.get(name)
        try:
            return array("i", value if isinstance(value, list) else [None])
        except (TypeError, OverflowError):
            raise self.error(name, "a list of whole numbers of at most 31 bits") from None

    def objects(self, name: str) -> list[Fields]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(name, "a list of objects")
        return [Fields(self.line, item, f"{self.where}{name}[{i}].") for i, item in enumerate(value)]
