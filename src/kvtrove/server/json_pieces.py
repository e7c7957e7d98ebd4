"""Large JSON texts, read in pieces: native code that reads millions of values at once keeps the interpreter, and
everybody who streams, waiting.

    {"messages": [ {...}, {...}, | {...}, {...}, | ... ], "model": ...}        each piece is parsed on its own
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic_core import from_json

PIECE = 128 * 2**10
"""Bytes that are read at once: a few milliseconds of numbers."""
_BLOCK = 2**18  # bytes that are scanned at once: they stay in a core's cache
_NESTED = 6  # levels that are cut into pieces; what lies deeper is read at once
_NAME = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:', re.DOTALL)
_BLANK = b" \t\r\n"


def read_json(text: bytes) -> Any:
    """The value of a JSON text, as `json.loads` reads it: of repeated names the last one counts. ValueError when it is
    none, which says where it breaks.
    """
    if len(text) <= PIECE:
        return _value(text, 0)
    try:
        return _read(text, masked(text), 0, _NESTED)
    except _UnclearError:
        return _value(text, 0)  # says where


def masked(text: bytes) -> bytes:
    """The same text, with quotation marks only where strings begin and end."""
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text


def structure(text: bytes) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Block by block of a masked text: (start, bytes, which are inside of strings, how deep in lists and objects)."""
    every, quoted, level = np.frombuffer(text, np.uint8), False, 0
    for start in range(0, len(every), _BLOCK):
        part = every[start : start + _BLOCK]
        inside = np.bitwise_xor.accumulate(part == ord('"'))
        inside ^= quoted
        quoted = bool(inside[-1])
        lower = part | 0x20  # "[" and "]" become "{" and "}"
        opening, closing = (lower == ord("{")) & ~inside, (lower == ord("}")) & ~inside
        levels = np.cumsum(opening.view(np.int8) - closing.view(np.int8), dtype=np.int32)
        levels += level
        level = int(levels[-1])
        yield start, part, inside, levels


class _UnclearError(ValueError):
    """The text is broken somewhere: its brackets do not match."""


def _read(text: bytes, mask: bytes, offset: int, nested: int) -> Any:
    """The value of a part of a text that begins at `offset`."""
    begin = len(text) - len(text.lstrip(_BLANK))
    end = len(text.rstrip(_BLANK))
    kind = text[begin : begin + 1] + text[end - 1 : end]
    if end - begin <= PIECE or nested == 0 or kind not in (b"[]", b"{}"):
        return _value(text, offset)
    found: Any = [] if kind == b"[]" else {}
    edges = [begin, *_cuts(mask[begin:end], begin), end - 1]
    for before, after in pairwise(edges):
        piece = slice(before + 1, after)
        at = offset + before + 1
        if not text[piece].strip(_BLANK):
            raise _UnclearError
        if after - before <= PIECE:
            part = _value(kind[:1] + text[piece] + kind[1:], at - 1)
        elif kind == b"[]":
            part = [_read(text[piece], mask[piece], at, nested - 1)]
        else:
            name = _NAME.match(text, before + 1, after)
            if name is None:
                raise _UnclearError
            rest = slice(name.end(), after)
            part = {_value(name[1], at): _read(text[rest], mask[rest], offset + name.end(), nested - 1)}
        found.extend(part) if kind == b"[]" else found.update(part)
    return found


def _cuts(mask: bytes, offset: int) -> list[int]:
    """Commas between items, about one for every PIECE: an item that is longer than that stands alone."""
    commas = []
    for start, part, inside, levels in structure(mask):
        ends = len(mask) - start - len(part)
        if levels[:-1].min(initial=1) < 1 or (levels[-1] < 1) is (ends > 0):
            raise _UnclearError
        commas.append(start + np.flatnonzero((part == ord(",")) & (levels == 1) & ~inside))
    at = np.concatenate(commas)
    if not len(at):
        return []
    behind = np.searchsorted(at, np.arange(PIECE, len(mask), PIECE))
    near = np.unique(np.concatenate([behind - 1, behind]).clip(0, len(at) - 1))
    return (at[near] + offset).tolist()


def _value(text: bytes, offset: int) -> Any:
    try:
        return from_json(text)
    except ValueError:
        pass
    try:  # this one also takes halves of surrogate pairs, and says more clearly what is wrong
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not offset:
            raise
        raise ValueError(f"{error.msg}: char {offset + error.pos}") from None
