"""JSON schemas as llguidance takes them: what it cannot enforce is enforced another way, refused by name, or relaxed.

annotation (unknown format, $comment, ...)   ignored, as the standard says
keyword with an equal that it knows          rewritten: propertyNames, unevaluatedProperties, uniqueItems: false, ...
keyword that it does not know                strict: RequestError that names keyword and place; else left out and told
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtrove.request import RequestError

Schema = dict[str, Any] | bool

# Compact JSON with json.dumps' separators: a grammar that allows any white space lets a model write nothing else.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_LEVELS = 120  # of schemas within schemas
SHALLOW = 24  # levels that stay where they are; deeper ones move to $defs (serde reads JSON of 128 levels)
HOISTED = "kvtrove_level_"

FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid", "unknown")
)
TYPES = (None, "object", "array", "string", "number", "integer", "boolean", "null")
_IN_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ALONE = ("additionalProperties", "additionalItems")
_UNENFORCED = (
    *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "contains"),
    *("minContains", "maxContains", "propertyNames", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor"),
)
# Look-around, word borders and references to groups: no automaton can follow them.
_BEYOND_REGULAR = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:=|!|<=|<!)|\\[bB1-9]|\\k<|\(\?P=)")


@dataclass
class Prepared:
    """relaxed: "keyword at #/place" of everything that the caller has to check himself."""

    schema: dict[str, Any]
    relaxed: list[str] = field(default_factory=list)


def prepare(schema: Mapping[str, Any], param: str, *, lenient: bool) -> Prepared:
    """`schema` in the words of llguidance, in compact style. Bounded in depth, and some text ends it.

    `"x-guidance": {"lenient": true}` in the schema itself makes it lenient as well. RequestError names what is wrong.
    """
    style = schema.get("x-guidance")
    given = style if isinstance(style, dict) else {}
    reader = _Reader(param, lenient or given.get("lenient") is True)
    rewritten = reader.read(schema, "#", 0)
    assert isinstance(rewritten, dict)
    if never_ends(rewritten):
        raise RequestError(f"{param}: no finite text is in this schema: what it requires requires itself", param)
    if not _points_inside(rewritten):
        rewritten = _flattened(rewritten)
    rewritten["x-guidance"] = JSON_STYLE | given | {"lenient": False}
    return Prepared(rewritten, reader.relaxed)


class _Reader:
    """Rewrites one schema; `relaxed` fills up as it goes."""

    def __init__(self, param: str, lenient: bool) -> None:
        self.param, self.lenient = param, lenient
        self.relaxed: list[str] = []

    def read(self, schema: Any, place: str, level: int) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(f"{place}: a schema is an object, true or false, not {type(schema).__name__}")
        if level > MAX_LEVELS:
            raise self._error(f"schemas are nested more than {MAX_LEVELS} levels deep; use $ref to $defs")
        new = dict(schema)
        for name in _list(new.get("type")) or [new.get("type")]:
            if name not in TYPES:
                raise self._error(f"type at {place}: {name!r:.60} is none of {', '.join(filter(None, TYPES))}")
        self._drop_annotations(new)
        self._rewrite(new)
        for keyword in _UNENFORCED:
            if keyword in new:
                self._relax(new, keyword, place)
        self._check_patterns(new, place)
        for name in _IN_MAPS:
            if isinstance(new.get(name), Mapping):
                new[name] = {key: self.read(s, f"{place}/{name}/{key}", level + 1) for key, s in new[name].items()}
        for name in _IN_LISTS:
            if isinstance(new.get(name), list):
                new[name] = [self.read(s, f"{place}/{name}/{i}", level + 1) for i, s in enumerate(new[name])]
        for name in _ALONE:
            if name in new:
                new[name] = self.read(new[name], f"{place}/{name}", level + 1)
        if isinstance(items := new.get("items"), list):
            new["items"] = [self.read(s, f"{place}/items/{i}", level + 1) for i, s in enumerate(items)]
        elif "items" in new:
            new["items"] = self.read(items, f"{place}/items", level + 1)
        return new

    def _error(self, text: str) -> RequestError:
        return RequestError(f"{self.param}: {text}", self.param)

    def _relax(self, schema: dict[str, Any], keyword: str, place: str, why: str = "cannot be enforced") -> None:
        if not self.lenient:
            remedy = "leave it out, or set strict to false to have it ignored and check the answer yourself"
            raise self._error(f"{keyword} at {place} {why}: {remedy}")
        del schema[keyword]
        self.relaxed.append(f"{keyword} at {place}")

    @staticmethod
    def _drop_annotations(new: dict[str, Any]) -> None:
        """What says nothing about the text, beside what llguidance knows to ignore."""
        new.pop("x-guidance", None)
        if new.get("format") not in FORMATS:
            new.pop("format", None)
        if "$dynamicRef" not in new:
            new.pop("$dynamicAnchor", None)
        if "$recursiveRef" not in new:
            new.pop("$recursiveAnchor", None)

    def _rewrite(self, new: dict[str, Any]) -> None:
        """Keywords that exclude nothing go; some others have an equal."""
        if new.get("uniqueItems") is False or new.get("maxItems") in (0, 1):
            new.pop("uniqueItems", None)
        if "if" not in new or not ("then" in new or "else" in new):
            for name in ("if", "then", "else"):
                new.pop(name, None)
        if "contains" not in new:
            new.pop("minContains", None)
            new.pop("maxContains", None)
        elif new.get("minContains") == 0 and "maxContains" not in new:
            del new["contains"], new["minContains"]
        if new.get("not") is False:
            del new["not"]
        for name in ("dependentRequired", "dependentSchemas", "dependencies"):
            if new.get(name) == {}:
                del new[name]
        self._rewrite_unevaluated(new)
        self._rewrite_names(new)

    @staticmethod
    def _rewrite_unevaluated(new: dict[str, Any]) -> None:
        """Without subschemas beside them that evaluate, they are additionalProperties and items."""
        for name, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if name not in new:
                continue
            others = {"$ref", "anyOf", "oneOf", "allOf", "if", "then", "else", "contains", "not", "$dynamicRef"}
            if new[name] is True or new[name] == {} or plain in new:
                del new[name]
            elif not others.intersection(new) and "dependentSchemas" not in new:
                new[plain] = new.pop(name)

    @staticmethod
    def _rewrite_names(new: dict[str, Any]) -> None:
        """propertyNames as patternProperties or properties, where no other keyword speaks of names."""
        names = new.get("propertyNames")
        if names is True or names in ({}, {"type": "string"}):
            del new["propertyNames"]
        elif isinstance(names, Mapping) and not {"properties", "patternProperties"}.intersection(new):
            value = new.get("additionalProperties", True)
            rest = set(names) - {"type"}
            if rest == {"pattern"}:
                new |= {"patternProperties": {names["pattern"]: value}, "additionalProperties": False}
                del new["propertyNames"]
            elif rest == {"enum"} and isinstance(names["enum"], list):
                known = dict.fromkeys((n for n in names["enum"] if isinstance(n, str)), value)
                new |= {"properties": known, "additionalProperties": False}
                del new["propertyNames"]

    def _check_patterns(self, new: dict[str, Any], place: str) -> None:
        why = "uses look-around, word borders or back-references, which cannot be enforced"
        if isinstance(pattern := new.get("pattern"), str) and _BEYOND_REGULAR.search(pattern):
            self._relax(new, "pattern", place, why)
        patterns = new.get("patternProperties")
        if isinstance(patterns, Mapping) and any(map(_BEYOND_REGULAR.search, patterns)):
            new["patternProperties"] = dict(patterns)
            for pattern in filter(_BEYOND_REGULAR.search, patterns):
                self._relax(new["patternProperties"], pattern, f"{place}/patternProperties", why)


def place_of(problem: str, schema: Mapping[str, Any]) -> str:
    """ " (at #/place)" of what llguidance's `problem` is about, "" where that cannot be told."""
    lines = [line.strip() for line in problem.splitlines()]
    regex = lines[1] if len(lines) > 2 and lines[0].endswith("regex parse error:") else None
    coerced = problem.startswith("oneOf constraints")
    stack: list[tuple[Any, str]] = [(schema, "#")]
    while stack:
        node, place = stack.pop()
        if isinstance(node, Mapping):
            if coerced and "oneOf" in node:
                return f" (at {place}/oneOf; or use anyOf, or set strict to false)"
            if regex is not None and (node.get("pattern") == regex or regex in (node.get("patternProperties") or ())):
                return f" (at {place})"
            stack += [(inner, f"{place}/{key}") for key, inner in node.items()]
        elif isinstance(node, list):
            stack += [(inner, f"{place}/{i}") for i, inner in enumerate(node)]
    return ""


def subschemas(schema: Schema) -> Iterator[tuple[tuple[str | int, ...], Schema]]:
    """(path of keys, schema) of the schemas directly within one that `prepare` has written."""
    if isinstance(schema, bool):
        return
    for name in _IN_MAPS:
        for key, inner in (schema.get(name) or {}).items():
            yield (name, key), inner
    for name in (*_IN_LISTS, "items"):
        inner = schema.get(name)
        if isinstance(inner, list):
            yield from (((name, i), one) for i, one in enumerate(inner))
        elif inner is not None and name == "items":
            yield (name,), inner
    for name in _ALONE:
        if name in schema:
            yield (name,), schema[name]


# ---- does a text end? ----


def never_ends(root: dict[str, Any]) -> bool:
    """Whether no finite text is in the schema, as far as its required parts say: {"a": {"a": {"a": ...

    The least fixed point: nothing ends until something is found to, passing from the leaves up until nothing changes.
    """
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += [inner for _, inner in subschemas(node) if isinstance(inner, dict)]
    ends: set[int] = set()
    changed = True
    while changed:
        changed = False
        for node in reversed(order):
            if id(node) not in ends and _ends(node, root, ends):
                ends.add(id(node))
                changed = True
    return id(root) not in ends


def _ends(node: dict[str, Any], root: dict[str, Any], ends: set[int]) -> bool:
    def known(inner: Any) -> bool:
        return inner is not False and (not isinstance(inner, dict) or id(inner) in ends)

    if "const" in node or "enum" in node:
        return True
    if "$ref" in node and not known(_target(node["$ref"], root)):
        return False
    if not all(map(known, _list(node.get("allOf")))):
        return False
    for name in ("anyOf", "oneOf"):
        if (choices := _list(node.get(name))) and not any(map(known, choices)):
            return False
    types = node.get("type")
    kinds = {types} if isinstance(types, str) else set(map(str, _list(types)))
    if not kinds or kinds - {"object", "array"}:
        return True
    return ("object" in kinds and _object_ends(node, known)) or ("array" in kinds and _array_ends(node, known))


def _object_ends(node: dict[str, Any], known: Any) -> bool:
    properties = node.get("properties") or {}
    return all(known(properties.get(name)) for name in _list(node.get("required")) if isinstance(name, str))


def _array_ends(node: dict[str, Any], known: Any) -> bool:
    least = node.get("minItems")
    least = int(least) if isinstance(least, int | float) else 0
    items = node.get("items")
    before = _list(node.get("prefixItems")) or (items if isinstance(items, list) else [])
    rest = node.get("additionalItems") if isinstance(items, list) else items
    return all(map(known, before[:least])) and (least <= len(before) or rest is None or known(rest))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(pointer: Any, root: dict[str, Any]) -> Any:
    """What a local pointer means; None for any other, of which nothing is known here."""
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        return None
    found: Any = root
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


# ---- depth ----


def _points_inside(root: dict[str, Any]) -> bool:
    """Whether a pointer leads into the middle of the schema, so that nothing may be moved."""
    stack: list[Schema] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            pointer = node.get("$ref")
            if isinstance(pointer, str) and pointer != "#" and pointer.count("/") != 2:
                return True
            stack += [inner for _, inner in subschemas(node)]
    return False


def _flattened(root: dict[str, Any]) -> dict[str, Any]:
    """The same schema with what lies deeper than SHALLOW levels moved to $defs, piece by piece."""
    moved: dict[str, Schema] = {}
    stack: list[tuple[Schema, int]] = [(root, 0)]
    while stack:
        node, level = stack.pop()
        for path, inner in list(subschemas(node)):
            if level == SHALLOW and isinstance(inner, dict) and inner:
                name = f"{HOISTED}{len(moved)}"
                moved[name] = inner
                _replace(node, path, {"$ref": f"#/$defs/{name}"})
                stack.append((inner, 2))
            else:
                stack.append((inner, level + 1))
    if moved:
        root["$defs"] = {**(root.get("$defs") or {}), **moved}
    return root


def _replace(node: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
