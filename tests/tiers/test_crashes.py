"""A process that is killed, or a machine that loses its power, at every single operation of the disk tier.

Nothing whose ticket was OK is lost, as far as the durability promises it, and nothing wrong is ever read.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.disk_log import DURABILITIES, Durability
from kvtrove.kv.tiers.store import Found, Outcome
from tests.tiers.disk_in_memory import Disk, MemoryFiles
from tests.tiers.rows import get, key, known, put, row

ENTRY = 8192  # of a row of 5000 bytes


def opened(disk: Disk, cut_at: int | None, durability: Durability, entries: int) -> tuple[DiskStore, MemoryFiles]:
    files = MemoryFiles(disk, cut_at)
    return DiskStore(DiskSettings("/tier", entries * ENTRY, durability, timeout=20), files=files), files


def publish(store: DiskStore, count: int) -> set[int]:
    """A small life: rows in chains, hits, a deletion, segments that fill up. The rows whose ticket was OK."""
    safe: set[int] = set()
    for first in range(0, count, 3):
        chain = range(first, first + 3)
        ticket = put(store, chain)
        safe |= {i for i, outcome in zip(chain, ticket.outcomes, strict=True) if outcome is Outcome.OK}
        if first == 6:
            get(store, [0, 3, 4])
            store.delete([key(1), key(7)])
    return safe - {1, 7}


def survive(disk: Disk, safe: set[int], durability: Durability, entries: int) -> None:
    """Open what is left: everything safe is there, everything found is right, and the store works on."""
    store, _ = opened(disk, None, durability, entries)
    everything = list(range(60))
    for i, found in zip(everything, known(store, everything), strict=True):
        assert found is Found.HERE or i not in safe, f"row {i} is lost"
    ticket, rows = get(store, everything)
    for i, outcome in enumerate(ticket.outcomes):
        assert outcome is Outcome.OK or i not in safe, f"row {i} cannot be read: {outcome}"
        assert outcome is not Outcome.OK or rows[i] == row(i), f"row {i} is wrong"
    assert put(store, [100, 101]).ok
    assert get(store, [100, 101])[0].ok
    told = store.figures()[0].notices  # rows that never reached the disk whole
    assert not told or (durability != "strict" and all("checksum" in notice for notice in told))
    store.close()
    again, _ = opened(disk, None, durability, entries)
    assert known(again, [100, 101]) == [Found.HERE] * 2
    again.close()


def crash(n: int, durability: Durability, entries: int, left: Callable[[Disk], Disk]) -> int:
    """Stop at operation n, look at what is left; returns how many operations there were.

    In a tier of 64 entries nothing is evicted; in one of 32, where three times as many rows are put, most is.
    """
    disk = Disk()
    safe: set[int] = set()
    files = None
    try:
        store, files = opened(disk, n, durability, entries)
    except ConfigError:  # it stopped while the directory was made
        pass
    else:
        put_ok = publish(store, 15 if entries == 64 else 48)
        safe = put_ok if entries == 64 else set()
        store.close()
    survive(left(disk), safe, durability, entries)
    return files.operations if files else n + 1


def every_operation(durability: Durability, entries: int, left: Callable[[Disk], Disk], step: int = 1) -> None:
    n = 0
    while crash(n, durability, entries, left) > n:
        n += step
    assert n > 20


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_process_killed_at_any_operation_loses_nothing(durability: Durability) -> None:
    every_operation(durability, 64, Disk.after_kill)


@pytest.mark.parametrize("seed", [1, 2])
def test_strict_loses_nothing_when_the_power_is_cut_at_any_operation(seed: int) -> None:
    every_operation("strict", 64, lambda disk: disk.after_power_cut(Random(seed)))


@pytest.mark.parametrize("durability", ["relaxed", "off"])
def test_nothing_wrong_is_read_after_a_power_cut(durability: Durability) -> None:
    for n in range(0, 40, 3):
        disk = Disk()
        try:
            store, _ = opened(disk, n, durability, 64)
        except ConfigError:
            continue
        publish(store, 15)
        store.close()
        survive(disk.after_power_cut(Random(n)), set(), durability, 64)


@pytest.mark.parametrize("left", [Disk.after_kill, lambda disk: disk.after_power_cut(Random(5))], ids=["kill", "power"])
def test_nothing_wrong_is_read_when_it_stops_while_segments_are_evicted(left: Callable[[Disk], Disk]) -> None:
    every_operation("strict", 32, left, step=11)  # of some 400
