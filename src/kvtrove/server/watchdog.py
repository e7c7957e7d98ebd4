"""Ends steps that never end, so that a request that hangs takes down itself and not the server."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class StepTimeoutError(RuntimeError):
    """Raised inside of a step that has taken too long."""

    def __str__(self) -> str:
        return "the step took too long and was ended by the watchdog"


class Watchdog:
    """Entered around every step. After `seconds` inside, StepTimeoutError is raised there once the thread is back in
    Python code. When it is not after as long once more, native code hangs: `on_stuck` is called, once.
    """

    def __init__(self, seconds: float, on_stuck: Callable[[], None]) -> None:
        self.seconds, self._on_stuck = seconds, on_stuck
        self._entered: float | None = None  # of the step that is watched; both are written by its thread alone
        self._owner = 0
        self._ended = threading.Event()
        self._warned: float | None = None  # when the step was entered that was told to end
        self._thread = threading.Thread(target=self._watch, name="kvtrove-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    @property
    def late(self) -> bool:
        """Whether the present step has taken too long."""
        entered = self._entered
        return entered is not None and time.monotonic() - entered > self.seconds

    def __enter__(self) -> None:
        self._owner = threading.get_ident()
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        entered, self._entered = self._entered, None
        if entered is not None and entered == self._warned:
            _raise_in(self._owner, None)  # it may still be on its way

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            entered = self._entered
            if entered is None or (late := time.monotonic() - entered) <= self.seconds:
                continue
            if entered != self._warned:
                self._warned = entered
                log.error("a step has taken %.0f s and is ended", late)
                _raise_in(self._owner, StepTimeoutError)
            elif late > 2 * self.seconds:
                log.critical("a step has taken %.0f s and cannot be ended", late)
                self._on_stuck()
                return


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise `error` in another thread at its next Python instruction; None takes back one that was not raised yet."""
    wanted = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)
