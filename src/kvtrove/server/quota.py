"""Rates of a tenant: requests and tokens per minute, as buckets that fill evenly.

    capacity |#####.....|  a request takes 1, and its prompt and longest answer in tokens; what it did not need returns
              fills at limit / 60 a second; capacity = limit x burst_seconds / 60

Prompt tokens that the cache served come back too: they cost the server next to nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvtrove.server.auth import Rates, Tenant
from kvtrove.server.errors import ApiError, refused

CODE = "rate_limit_exceeded"


@dataclass
class Bucket:
    """What is left of one rate. limit: per minute. capacity: most that can be saved up."""

    limit: int
    capacity: float
    level: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self._at = self.capacity, -math.inf

    def refill(self, now: float) -> None:
        if now > self._at:
            self.level = min(self.capacity, self.level + (now - self._at) * self.limit / 60)
            self._at = now

    def seconds_until(self, amount: float) -> float:
        """How long until `amount` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.limit)

    def give_back(self, amount: float) -> None:
        self.level = min(self.capacity, self.level + amount)


class Quotas:
    """The buckets of every tenant that has rates. Event loop only. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[Rates, dict[str, Bucket]]] = {}

    def _of(self, tenant: Tenant) -> dict[str, Bucket]:
        """Buckets "requests" and "tokens", those that are limited, filled up to now. New rates begin full."""
        known = self._buckets.get(tenant.name)
        if known is None or known[0] != tenant.rates:
            rates = tenant.rates
            limits = {"requests": rates.requests_per_minute, "tokens": rates.tokens_per_minute}
            share = rates.burst_seconds / 60
            known = rates, {kind: Bucket(n, max(1.0, n * share)) for kind, n in limits.items() if n is not None}
            self._buckets[tenant.name] = known
        for bucket in known[1].values():
            bucket.refill(self._clock())
        return known[1]

    def take(self, tenant: Tenant, kind: str, amount: int) -> None:
        """ApiError 429 when it is not there yet, with the seconds until it is; 400 when it never will be."""
        bucket = self._of(tenant).get(kind)
        if bucket is None:
            return
        if amount > bucket.capacity:
            raise refused(
                f"the request takes up to {amount} {kind}, and {tenant.name} may take {int(bucket.capacity)} at once "
                f"({bucket.limit} per minute): shorten the prompt or lower the tokens of the answer",
                code="request_too_large",
            )
        if wait := bucket.seconds_until(amount):
            headers = {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
            text = f"{tenant.name} may take {bucket.limit} {kind} per minute; try again in {wait:.1f} s"
            raise ApiError(429, text, code=CODE, headers=headers | self.headers(tenant))
        bucket.level -= amount

    def give_back(self, tenant: Tenant, kind: str, amount: int) -> None:
        """What was taken and not needed."""
        bucket = self._of(tenant).get(kind)
        if bucket is not None:
            bucket.give_back(amount)

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI sends them: the limit, what remains, and the time until all of it is back."""
        found = {}
        for kind, bucket in self._of(tenant).items():
            found[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            found[f"x-ratelimit-remaining-{kind}"] = str(int(bucket.level))
            found[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.capacity):.3f}s"
        return found
