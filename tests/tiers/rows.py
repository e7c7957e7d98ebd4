"""Rows with numbers: what tests put into a store, and how they wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvtrove.kv.tiers.store import BlockStore, Found, Ticket

ROW = 5000  # bytes; no multiple of a page


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


def row(i: int, nbytes: int = ROW) -> memoryview:
    """Bytes that no other row has, most of which compress."""
    start = (i * 2654435761).to_bytes(8, "little")
    return memoryview(bytearray((start + b"kvtrove!" * (nbytes // 8))[:nbytes]))


def wait(store: BlockStore, ticket: Ticket, seconds: float = 20) -> Ticket:
    """Poll until `ticket` comes back, which it does once."""
    back: list[Ticket] = []
    until = time.monotonic() + seconds
    while ticket not in back and time.monotonic() < until:
        back += store.poll()
        time.sleep(0.0005)
    assert back.count(ticket) == 1
    assert ticket.done
    assert None not in ticket.outcomes
    return ticket


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what a thread will do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def put(store: BlockStore, numbers: Sequence[int], nbytes: int = ROW) -> Ticket:
    return wait(store, store.put([key(i) for i in numbers], [row(i, nbytes) for i in numbers]))


def get(store: BlockStore, numbers: Sequence[int], nbytes: int = ROW) -> tuple[Ticket, list[memoryview]]:
    rows = [memoryview(bytearray(nbytes)) for _ in numbers]
    return wait(store, store.get([key(i) for i in numbers], rows)), rows


def known(store: BlockStore, numbers: Sequence[int]) -> list[Found]:
    """What `lookup` says once nothing is unknown any more."""
    keys = [key(i) for i in numbers]
    for _ in range(10_000):
        found = list(store.lookup(keys))
        if Found.UNKNOWN_YET not in found:
            return found
        time.sleep(0.0005)
    raise AssertionError("lookup never came to an answer")
