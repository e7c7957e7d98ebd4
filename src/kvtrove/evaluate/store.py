"""Finished results, kept so that an interrupted evaluation goes on where it was.

    {"format": ..., "runs": {fingerprint of model and settings: {key of a cell: result}}}

A result is found again only under the fingerprint and the key that it was kept with, so several models and settings may
share a file and none sees another's results.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError
from kvtrove.kv.spec import KVCacheSpec

FORMAT = "kvtrove-eval-state/1"

Value = dict[str, Any]


def cell_key(name: str, cache: KVCacheSpec, key: str) -> str:
    """A configuration is what its name makes of the cache, so a name that comes to mean another cache starts anew."""
    return f"{name} {cache.fingerprint.hex()[:16]} / {key}"


class Store:
    """Results of one fingerprint, in memory and, with a path, in a file that is replaced as a whole.

    ConfigError when the file is there but is no such state, or cannot be written.
    """

    def __init__(self, path: str | None, fingerprint: str) -> None:
        self.path = None if path is None else Path(path)
        self._runs = _read(self.path)
        self._own: dict[str, Value] = self._runs.setdefault(fingerprint, {})

    def get(self, key: str) -> Value | None:
        return self._own.get(key)

    def put(self, key: str, value: Value) -> None:
        self._own[key] = value
        if self.path is not None:
            _write(self.path, {"format": FORMAT, "runs": self._runs})


def _read(path: Path | None) -> dict[str, dict[str, Value]]:
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        runs = found["runs"] if found["format"] == FORMAT else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"state: {path} is no state of `kvtrove eval`: {error}; name another file") from error
    if not (isinstance(runs, dict) and all(isinstance(run, dict) for run in runs.values())):
        raise ConfigError(f"state: {path} is no state of `kvtrove eval` ({FORMAT}); name another file")
    return runs


def _write(path: Path, content: dict[str, Any]) -> None:
    """The old file stays whole until the new one is."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(json.dumps(content), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"state: cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
