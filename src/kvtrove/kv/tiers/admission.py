"""Admission: what is worth keeping. Most blocks of a busy server are computed once and never asked for again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

Admit = Literal["first", "second"]
ADMISSIONS: tuple[Admit, ...] = ("first", "second")
ONCE_SEEN = 65_536
"""Keys whose first `put` is remembered, with "second"."""


class Admission:
    """ "first" keeps what is put, "second" what is put again while its first time is remembered."""

    def __init__(self, admit: Admit) -> None:
        self._admit = admit
        self._once_seen: OrderedDict[bytes, None] = OrderedDict()

    def admits(self, key: bytes) -> bool:
        if self._admit == "first" or key in self._once_seen:
            self._once_seen.pop(key, None)
            return True
        self._once_seen[key] = None
        if len(self._once_seen) > ONCE_SEEN:
            self._once_seen.popitem(last=False)
        return False
