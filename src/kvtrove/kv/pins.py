"""Blocks that stay in the cache whatever becomes of the sequences that hold them."""

from __future__ import annotations

from collections.abc import Iterator

from kvtrove.kv.block import Block
from kvtrove.kv.pool import BlockPool


class Pin:
    """References that keep sealed blocks in the cache until they are let go."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks


class Pins:
    """Every pin of a pool, by identity."""

    def __init__(self) -> None:
        self._pins: dict[int, Pin] = {}

    def __contains__(self, pin: Pin) -> bool:
        return id(pin) in self._pins

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._pins.values())

    def add(self, blocks: list[Block], pool: BlockPool) -> Pin:
        """One reference more to each of the sealed or cached `blocks`."""
        pin = Pin(blocks)
        for block in blocks:
            pool.acquire(block)
        self._pins[id(pin)] = pin
        return pin

    def remove(self, pin: Pin, pool: BlockPool) -> bool:
        """Let go of what `pin` kept; False when that has happened before."""
        if self._pins.pop(id(pin), None) is None:
            return False
        pool.release(pin.blocks)
        return True

    def clear(self) -> None:
        """Forget all pins without releasing anything: their pool is gone."""
        self._pins.clear()

    @property
    def num_blocks(self) -> int:
        """Blocks that some pin keeps."""
        return len({block.id for pin in self for block in pin.blocks})
