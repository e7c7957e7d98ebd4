"""The JSON schemas of tools: what a forced call may hold, and which types a parameter may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Types = Callable[[str, str], Mapping[str, Any]]  # (tool, parameter) -> its schema

_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_SAYS_MORE = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames")
_COMBINES = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "not")
_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def allowed_types(schema: Mapping[str, Any]) -> set[str]:
    """JSON types that a schema mentions; empty when it says nothing of them."""
    kind = schema.get("type")
    types = {kind} if isinstance(kind, str) else {t for t in kind or () if isinstance(t, str)}
    for value in [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]:
        types.add(_TYPE_OF.get(type(value), "object"))
    for branch in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))):
        if isinstance(branch, Mapping):
            types |= allowed_types(branch) or {"object"}  # a reference, most likely to an object
    if not types and "$ref" in schema:
        types.add("object")
    return types


def arguments_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """What forced arguments must look like: an object always, and closed wherever the tool's author lists properties
    and says nothing of others (without that, models make arguments up).
    """
    schema = dict(parameters or {})
    kind = schema.get("type")
    if kind is None or (isinstance(kind, list) and "object" in kind):
        schema["type"] = "object"
    return schema if _has_all_of(schema) else closed(schema)


def closed(schema: Any) -> Any:
    """`schema` with additionalProperties false on every object that has properties and combines no other schemas."""
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for key in _MAPS:
        if isinstance(result.get(key), Mapping):
            result[key] = {name: closed(inner) for name, inner in result[key].items()}
    for key in _LISTS:
        if isinstance(result.get(key), list):
            result[key] = [closed(inner) for inner in result[key]]
    for key in _SINGLE:
        if isinstance(result.get(key), Mapping):
            result[key] = closed(result[key])
    if result.get("properties") and not any(key in result for key in (*_SAYS_MORE, *_COMBINES)):
        result["additionalProperties"] = False
    return result


def _has_all_of(schema: Any) -> bool:
    """Whether several schemas are joined somewhere: closing one of them would exclude the properties of the others."""
    if isinstance(schema, Mapping):
        return len(_list(schema.get("allOf"))) > 1 or any(map(_has_all_of, schema.values()))
    return isinstance(schema, list) and any(map(_has_all_of, schema))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
