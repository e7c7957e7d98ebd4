"""Which replica gets a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from kvtrove.plan.simulate.replica import Replica
from kvtrove.plan.traces.request import TraceRequest


class Router(Protocol):
    def choose(self, request: TraceRequest, replicas: Sequence[Replica]) -> int: ...


class RoundRobin:
    """In turn, whatever they hold."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, request: TraceRequest, replicas: Sequence[Replica]) -> int:
        self._next = (self._next + 1) % len(replicas)
        return self._next


class PrefixAffinity:
    """Where the longest part of the prompt was sent before, unless that replica has far more to do than the idlest.

    max_imbalance: requests that a replica may have beyond twice the idlest one's.
    """

    def __init__(self, max_imbalance: int = 4) -> None:
        self._max_imbalance = max_imbalance
        self._sent: Counter[int] = Counter()  # requests per replica so far: who had fewest gets what belongs nowhere
        self._home: dict[int, int] = {}  # block id -> the replica that computed it last

    def choose(self, request: TraceRequest, replicas: Sequence[Replica]) -> int:
        idlest = min(range(len(replicas)), key=lambda i: (replicas[i].load, self._sent[i]))
        chosen = idlest
        for block in request.blocks:
            home = self._home.get(block)
            if home is None:
                break
            chosen = home
        if replicas[chosen].load > 2 * replicas[idlest].load + self._max_imbalance:
            chosen = idlest
        self._sent[chosen] += 1
        self._home.update(dict.fromkeys(request.blocks, chosen))
        return chosen


def make_router(name: str) -> Router:
    return PrefixAffinity() if name == "prefix" else RoundRobin()
