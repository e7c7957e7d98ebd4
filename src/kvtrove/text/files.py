"""The JSON files of a checkpoint directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvtrove.models.spec import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} without the file. ModelError when it is something else."""
    found = _value(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds a JSON {type(found).__name__}, expected an object")
    return found


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The list of objects in a JSON file, [] without the file. ModelError when it is something else."""
    found = _value(path) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ModelError(f"{path}: holds a JSON {type(found).__name__}, expected a list of objects")
    return found


def _value(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
