"""How deep a JSON text nests, found before it is parsed: what reads it recurses, and stacks are finite."""

from __future__ import annotations

import re

import numpy as np

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKET = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEP = np.zeros(256, np.int8)
_STEP[[*b"[{"]], _STEP[[*b"]}"]] = 1, -1


def nesting(text: bytes, enough: int) -> int:
    """Depth of the arrays and objects of `text`; an upper bound when there are no more than `enough` of them."""
    opened = text.count(b"[") + text.count(b"{")
    if opened <= enough:
        return opened
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKET)
    steps = _STEP[np.frombuffer(brackets, np.uint8)]
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))
