"""Threads for what takes a while: reading bodies, templates, tokenising, writing long answers.

Large bodies have a lane of their own: whatever they hold, a short prompt does not wait behind them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TypeVar

from kvtrove.plan.process import return_freed_memory
from kvtrove.text.budget import CURRENT, Budget

T = TypeVar("T")

LARGE = 64 * 2**10  # bytes of a body that make its work large
SMALL_THREADS, LARGE_THREADS = 4, 2  # tokenising lets go of the interpreter, so a few threads keep all cores busy
SWITCH_SECONDS = 0.001  # how long one thread of Python keeps the others waiting; Python's default is 5 ms

TRIM_AFTER = 2.0
"""Seconds from the end of large work until what it has freed goes back to the system: a text of 4 MiB makes a million
tokens, whose memory the C library would keep.
"""

BODY_SIZE: ContextVar[int] = ContextVar("body_size", default=0)
"""Bytes of the body of the request that this context serves."""


class TextPool:
    """`seconds`: how long one piece of work may take where it looks at its budget (templates do)."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._small = ThreadPoolExecutor(SMALL_THREADS, thread_name_prefix="kvtrove-text")
        self._large = ThreadPoolExecutor(LARGE_THREADS, thread_name_prefix="kvtrove-large-text")
        self._running: set[Budget] = set()
        self._trim: asyncio.TimerHandle | None = None  # to come; event loop only

    def start(self) -> None:
        """The engine's thread shares the interpreter with these: it gets its turn sooner than by default, and the
        garbage collector, which stops everybody, no longer looks at what lives as long as the process.
        """
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()

    def stop(self) -> None:
        """What runs ends at its next look at its budget, what waits is never begun."""
        if self._trim is not None:
            self._trim.cancel()
        for budget in self._running:
            budget.cancel()
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run `function` on a thread. When whoever waits is cancelled, so is the work."""
        budget, context = Budget(self._seconds), copy_context()
        context.run(CURRENT.set, budget)
        pool = self._large if BODY_SIZE.get() >= LARGE else self._small
        self._running.add(budget)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, context.run, function, *args)
        finally:
            budget.cancel()
            self._running.discard(budget)
            if pool is self._large and self._trim is None:
                self._trim = asyncio.get_running_loop().call_later(TRIM_AFTER, self._return_memory)

    def _return_memory(self) -> None:
        self._trim = None
        self._large.submit(return_freed_memory)
