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
    """`num_waiting` tells how many sequences the engine has not begun, `num_seats` how many more it would begin now.
    Event loop only.
    """

    def __init__(self, limits: Limits, num_waiting: Callable[[], int], num_seats: Callable[[], int]) -> None:
        self.limits = limits
        self._num_seats = num_seats
        self._preparing = 0  # requests that were let in and have not come to the engine
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
        self._refuse_beyond_queue(1)
        if tenant.max_concurrent is not None and self.in_flight[tenant.name] >= tenant.max_concurrent:
            raise busy(f"{tenant.name} has {tenant.max_concurrent} requests in flight, its most", self.retry_after())
        self.in_flight[tenant.name] += 1
        self._preparing += 1
        self._empty.clear()

    def prepared(self, num_prompts: int = 0) -> None:
        """A request that was let in comes to the engine with so many prompts; 0 when it never does.

        ApiError 429 when they are more than may wait; the prompts of one request may, if nobody else does.
        """
        self._preparing -= 1
        if num_prompts > 1 and self._num_waiting():
            self._refuse_beyond_queue(num_prompts)

    def _refuse_beyond_queue(self, num: int) -> None:
        """Those who will wait once `num` more have come, beyond the seats that are free, are at most `max_queue`."""
        if self._num_waiting() + self._preparing + num > self.limits.max_queue + self._num_seats():
            raise busy(f"{self.limits.max_queue} sequences wait already, the most that may", self.retry_after())

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
