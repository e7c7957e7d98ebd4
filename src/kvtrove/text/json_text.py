"""Values as JSON text. Native code that writes millions of them at once keeps the interpreter, and everybody who
streams, waiting; many are written in Python, where others get their turn.
"""

from __future__ import annotations

import json
from typing import Any

MANY = 20_000
"""Values that native code writes at once: about a millisecond."""


def write_json(
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    allow_nan: bool = True,
) -> str:
    """As `json.dumps`."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=allow_nan
    )
    return "".join(encoder.iterencode(value)) if has_many(value) else encoder.encode(value)


def has_many(value: Any, most: int = MANY) -> bool:
    """Whether lists and objects in it hold more than `most` values."""
    stack, seen = [value], 0
    while stack and seen <= most:
        item = stack.pop()
        if isinstance(item, dict):
            item = list(item.values())
        if isinstance(item, (list, tuple)):
            seen += len(item)
            stack += [part for part in item[: most + 1] if isinstance(part, (dict, list, tuple))]
    return seen > most
