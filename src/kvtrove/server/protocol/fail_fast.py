"""Validation that stops at the first wrong item of a list or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_KINDS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


def fail_fast(schema: CoreSchema) -> CoreSchema:
    """The same schema, of which every list and every object of plain values fails with its first wrong item."""
    return cast(CoreSchema, _walk(schema))


def _walk(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_walk, schema))
    if not isinstance(schema, dict):
        return schema
    is_schema = isinstance(schema.get("type"), str)  # and not the fields of a model, one of which may be "metadata"
    new = {key: value if is_schema and key == "metadata" else _walk(value) for key, value in schema.items()}
    if new.get("type") == "list":
        new["fail_fast"] = True
    elif new.get("type") == "dict" and (kind := new.get("values_schema", {}).get("type")) in _KINDS:
        return core_schema.no_info_before_validator_function(_checked(kind), cast(CoreSchema, new))
    return new


def _checked(kind: str) -> Callable[[Any], Any]:
    return partial(_check_values, kind, _KINDS[kind])


def _check_values(name: str, kinds: tuple[type, ...], value: Any) -> Any:
    """pydantic has no fail_fast for objects: the first value of a wrong type is found here."""
    if isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in kinds:
                raise PydanticCustomError(
                    "invalid_type", "{key}: expected {name}", {"key": str(key)[:60], "name": name}
                )
    return value
