"""Which blocks were evicted lately, and when: a record of fixed size."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

MAX_EVICTED = 32_768  # keys remembered, 16 bytes each


class EvictedKeys:
    """When the blocks evicted last were evicted, by key; the oldest entries are overwritten beyond `capacity`.

    A ring of fixed size, written in turn and searched whole (some 10 us, once per prompt): it never grows. Of a key, a
    hash, the first eight bytes stand for it.
    """

    def __init__(self, capacity: int = MAX_EVICTED, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._times = np.zeros(capacity, np.int64), np.full(capacity, -1.0)
        self._written = 0
        self._clock = clock

    def __len__(self) -> int:
        return min(self._written, len(self._keys))

    def add(self, key: bytes) -> None:
        at = self._written % len(self._keys)
        self._keys[at], self._times[at] = _head(key), self._clock()
        self._written += 1

    def age(self, key: bytes) -> float | None:
        """Seconds since `key` was last evicted, None when that is not known."""
        found = self._times[: len(self)][self._keys[: len(self)] == _head(key)]
        return None if found.size == 0 else self._clock() - float(found.max())


def _head(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)
