"""Every order by the name that users give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtrove.config import EVICTION
from kvtrove.kv.block import BlockList
from kvtrove.kv.eviction.counts import GreedyDual, LeastFrequentlyUsed
from kvtrove.kv.eviction.order import EvictionOrder
from kvtrove.kv.eviction.priority import Prioritised
from kvtrove.kv.eviction.queues import S3Fifo, Sieve
from kvtrove.kv.eviction.reuse import ReuseModel
from kvtrove.kv.eviction.workload import Workload

_PLAIN: dict[str, Callable[[], EvictionOrder]] = {
    "lru": BlockList,
    "s3fifo": S3Fifo,
    "sieve": Sieve,
    "lfu": LeastFrequentlyUsed,
    "gdsf": GreedyDual,
}
assert set(EVICTION) == {*_PLAIN, "workload"}, "settings name the orders that there are"


@dataclass(frozen=True)
class Eviction:
    """How a cache decides who leaves: empty orders of one kind, and what all of them learn from. name: of EVICTION."""

    name: str
    clock: Callable[[], float]
    model: ReuseModel | None

    @classmethod
    def named(cls, name: str, block_size: int, clock: Callable[[], float]) -> Eviction:
        """ValueError for a name that is not in EVICTION."""
        if name not in EVICTION:
            raise ValueError(f"eviction: {name!r} is not one of {', '.join(EVICTION)}")
        return cls(name, clock, ReuseModel(block_size, clock) if name == "workload" else None)

    def order(self) -> EvictionOrder:
        """An empty one."""
        model = self.model
        make = _PLAIN[self.name] if model is None else lambda: Workload(model)
        return Prioritised(make, self.clock)
