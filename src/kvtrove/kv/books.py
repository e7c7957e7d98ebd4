"""The books of a cache, as their parts see them: the geometry, the pool and the index that belong together."""

from __future__ import annotations

from typing import Protocol

from kvtrove.kv.block import Block
from kvtrove.kv.events import EventKind
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.prefix_cache import PrefixCache
from kvtrove.kv.spec import KVCacheSpec


class Books(Protocol):
    """Properties, because a fault may replace pool and index (`kv.repair`)."""

    @property
    def spec(self) -> KVCacheSpec: ...
    @property
    def pool(self) -> BlockPool: ...
    @property
    def index(self) -> PrefixCache: ...


class Teller(Books, Protocol):
    """Books that tell what happens to blocks."""

    def tell(self, kind: EventKind, block: Block) -> None: ...
