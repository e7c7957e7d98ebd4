"""What a sequence in the queue may wait for, other than its turn and free blocks."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.kv.loads import Load


@dataclass(frozen=True, slots=True)
class Computing:
    """Another sequence computes the block with this key: waiting turns a duplicate computation into a hit."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Loading:
    """More of the prompt's prefix is on its way up from a tier."""

    load: Load


@dataclass(frozen=True, slots=True)
class Until:
    """Seconds of the scheduler's clock."""

    time: float


Wait = Computing | Loading | Until
