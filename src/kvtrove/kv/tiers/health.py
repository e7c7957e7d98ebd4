"""Health: what keeps failing is left alone for a while, and said once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

TOLERATED = 3  # failures in a row before the medium rests
FIRST_REST = 1.0  # seconds; doubled with every failure after a rest
LONGEST_REST = 60.0
LASTS = 60.0  # seconds for which it is shown that something was got around


class Health:
    """Whether it is worth trying. `failed` and `worked` are told of every attempt, by any thread.

    A fault is logged when it begins and when it ends, not each time. clock: monotonic, so the wall clock may jump.
    """

    def __init__(
        self, what: str, on_error: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what = what
        self._on_error = on_error
        self._clock = clock
        self._in_a_row = 0
        self._rest_until = 0.0
        self._faults: dict[str, str] = {}  # reason -> the words of the first failure
        self._got_around: dict[str, tuple[float, str]] = {}  # reason -> until when it is shown, in words
        self._lock = threading.Lock()

    @property
    def is_usable(self) -> bool:
        """False while it rests. After a rest one failure is enough for the next, longer one."""
        return self._clock() >= self._rest_until

    @property
    def notices(self) -> tuple[str, ...]:
        now = self._clock()
        return (*self._faults.values(), *(words for until, words in self._got_around.values() if until > now))

    def failed(self, reason: str, detail: object = "", *, at_once: bool = False) -> None:
        """An attempt failed. reason: of a short closed list, for counting. at_once: rest now, not at the third time."""
        self._on_error(reason)
        with self._lock:
            self._in_a_row += 1
            if at_once:
                self._in_a_row = max(self._in_a_row, TOLERATED)
            if self._in_a_row >= TOLERATED:
                rest = min(LONGEST_REST, FIRST_REST * 2.0 ** min(self._in_a_row - TOLERATED, 10))
                self._rest_until = self._clock() + rest
            is_new = reason not in self._faults
            if is_new:
                self._faults[reason] = f"{self.what}: {reason}" + (f" ({detail})" if detail else "")
        if is_new:
            log.warning("%s; the engine goes on without", self._faults[reason])

    def got_around(self, reason: str, how: str) -> None:
        """Something was wrong and cost rows at most: said once, shown until it stays away. The caller counts it."""
        now, words = self._clock(), f"{self.what}: {reason}; {how}"
        with self._lock:
            is_new = self._got_around.get(reason, (0.0, ""))[0] <= now
            self._got_around[reason] = now + LASTS, words
        if is_new:
            log.warning("%s", words)

    def worked(self) -> None:
        if not self._in_a_row and not self._faults:
            return
        with self._lock:
            faults, self._faults = list(self._faults), {}
            self._in_a_row = 0
            self._rest_until = 0.0
        if faults:
            log.warning("%s works again after: %s", self.what, ", ".join(faults))
