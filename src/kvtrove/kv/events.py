"""What happened to blocks, for routers and others who follow a cache from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventKind = Literal["sealed", "evicted", "loaded", "cleared"]


@dataclass(frozen=True, slots=True)
class KVEvent:
    """A block with this key, of this group of layers, was computed, left the pool, or came back from a tier.

    parent: key of the block before it, empty of the first. tokens: int32, little-endian. "cleared": nothing is left.
    """

    kind: EventKind
    key: bytes
    group: int
    parent: bytes = b""
    tokens: bytes = b""
