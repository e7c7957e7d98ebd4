"""A JSON object of a checkpoint with typed access: every error names the file, the key and what stands there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvtrove.models.spec import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError when the file is missing, broken, or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ModelError(f"{path}: the file is missing") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values


class ConfigView:
    """Read-only. A key without a default is required; a key set to null counts as left out."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.where}: {message}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        return self.values[key] if self.has(key) else default

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; JSON counts 4608.0 as one."""
        value = self._required(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(f"{key!r} is {value!r}, expected a whole number of at least {least}")
        return value

    def optional_size(self, key: str, default: int | None = None) -> int | None:
        """None when the key is null; `default` when it is not there at all."""
        if key not in self.values:
            return default
        return self.size(key) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        value = self._required(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"{key!r} is {value!r}, expected a number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key!r} is {value!r}, expected true or false")
        return value

    def section(self, key: str) -> ConfigView:
        value = self._required(key, None)
        if not isinstance(value, dict):
            raise self.error(f"{key!r} is {value!r}, expected an object")
        return ConfigView(value, f"{self.where}: {key}")

    def over(self, defaults: Mapping[str, Any]) -> ConfigView:
        """The same view with `defaults` for keys that are not there (null stays null)."""
        return ConfigView({**defaults, **self.values}, self.where)

    def _required(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise self.error(f"{key!r} is missing")
        return value
