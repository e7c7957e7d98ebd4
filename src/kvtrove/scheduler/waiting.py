"""What a sequence in the queue may wait for, other than its turn and free blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Computing:
    """Another sequence computes the block with this key: waiting turns a duplicate computation into a hit."""

    key: bytes


Wait = Computing
