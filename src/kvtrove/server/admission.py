"""Who may come in: counts requests in flight, sheds load before it hurts those who are in, and drains at the end."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable

from kvtrove.server.auth import Tenant
from kvtrove.server.errors import busy, draining
from kvtrove.server.settings import Limits

MAX_RETRY_AFTER = 60  # seconds


class Admission:
    """`num_waiting` tells how many sequences the engine has not begun. Event loop only."""

    def __init__(self, limits: Limits, num_waiting: Callable[[], int]) -> None:
        self.limits = limits
        self.draining = False
        self.in_flight: Counter[str] = Counter()  # by tenant
        self._num_waiting = num_waiting
        self._mean_seconds = 1.0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_in_flight(self) -> int:
        return self.in_flight.total()

    def enter(self, tenant: Tenant) -> None:
        """Count a request in. ApiError 429 or 503 with Retry-After when it must come back later."""
        if self.draining:
            raise draining(self.retry_after())
        if self.num_in_flight >= self.limits.max_concurrent:
            raise busy(
                f"{self.limits.max_concurrent} requests are in flight, the most there may be", self.retry_after()
            )
        if self._num_waiting() >= self.limits.max_queue:
            raise busy(f"{self.limits.max_queue} sequences wait already, the most that may", self.retry_after())
        if tenant.max_concurrent is not None and self.in_flight[tenant.name] >= tenant.max_concurrent:
            raise busy(f"{tenant.name} has {tenant.max_concurrent} requests in flight, its most", self.retry_after())
        self.in_flight[tenant.name] += 1
        self._empty.clear()

    def leave(self, tenant: Tenant, seconds: float) -> None:
        """Count a request out that took `seconds`."""
        self.in_flight[tenant.name] -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        if not self.num_in_flight:
            self._empty.set()

    def retry_after(self) -> int:
        """Seconds until about as many requests as wait have been served, going by the recent ones."""
        waiting, running = self._num_waiting(), max(1, self.num_in_flight - self._num_waiting())
        return max(1, min(MAX_RETRY_AFTER, math.ceil(self._mean_seconds * (waiting + 1) / running)))

    async def empty(self) -> None:
        """Wait until no request is in flight."""
        await self._empty.wait()
