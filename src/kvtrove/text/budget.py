"""How much one piece of work on text may cost, checked by those who do it and cut short by those who wait for it."""

from __future__ import annotations

import time
from contextvars import ContextVar


class BudgetError(Exception):
    """The work took more than it may, or nobody waits for it any more."""


class Budget:
    """`spend` raises when it is used up. `cancel` may be called by any thread.

    seconds: on the clock. steps: of a loop, calls, operations. characters: of text that was made or copied.
    """

    def __init__(self, seconds: float = 10.0, steps: int = 10_000_000, characters: int = 2**31) -> None:
        self.seconds, self.steps, self.characters = seconds, steps, characters
        self._deadline = time.monotonic() + seconds
        self._steps_left, self._characters_left = steps, characters
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def spend(self, steps: int = 1, characters: int = 0) -> None:
        """BudgetError when there is not so much left."""
        self._steps_left -= steps
        self._characters_left -= characters
        if self._cancelled:
            raise BudgetError("nobody waits for it any more")
        if self._steps_left < 0:
            raise BudgetError(f"it takes more than {self.steps:,} steps")
        if self._characters_left < 0:
            raise BudgetError(f"it makes more than {self.characters:,} characters")
        if time.monotonic() > self._deadline:
            raise BudgetError(f"it takes longer than {self.seconds:g} s")


CURRENT: ContextVar[Budget | None] = ContextVar("budget", default=None)
"""The budget of the work that runs in this context, if somebody set one."""


def current() -> Budget:
    """The budget of this context, a fresh one where there is none."""
    return CURRENT.get() or Budget()
