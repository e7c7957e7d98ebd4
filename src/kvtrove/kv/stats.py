"""What the cache tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.kv.eviction.priority import Prioritised
from kvtrove.kv.marks import Marks, MarkStats
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class KVStats:
    """Blocks now, and what happened since the start.

    num_blocks = free + cached + used; checkpoints lie in cached ones. queries, hits: prompt tokens of admitted
    sequences, and those of them whose K/V were reused. evictions: cached blocks given up for new ones. duplicates:
    blocks sealed beside an equal findable one. mismatches: lookups that found a block of other tokens under the right
    key (a miss; should stay 0).
    soft_pinned: cached ones that leave last, for a while.
    eviction_age: seconds that the last evicted block had not been used; when it is small, the pool is.
    marks: checkpoints of running states; None without such layers.
    """

    num_blocks: int
    free: int
    cached: int
    used: int
    queries: int
    hits: int
    evictions: int
    duplicates: int
    mismatches: int
    eviction_age: float | None
    marks: MarkStats | None = None
    soft_pinned: int = 0

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences and pins hold, 0 to 1."""
        return self.used / self.num_blocks

    @property
    def hit_rate(self) -> float:
        """Share of the queried tokens that were reused, 0 to 1."""
        return self.hits / self.queries if self.queries else 0.0


def stats_of(pool: BlockPool, index: PrefixCache, queries: int, hits: int, marks: Marks) -> KVStats:
    """The figures of a pool and its index now."""
    free, cached = pool.num_free, pool.num_cached
    return KVStats(
        num_blocks=pool.num_blocks,
        free=free,
        cached=cached,
        used=pool.num_blocks - free - cached,
        queries=queries,
        hits=hits,
        evictions=pool.num_evictions,
        duplicates=index.num_duplicates,
        mismatches=index.num_mismatches,
        eviction_age=pool.eviction_age,
        marks=marks.stats() if marks.enabled else None,
        soft_pinned=pool.cached.num_kept if isinstance(pool.cached, Prioritised) else 0,
    )
