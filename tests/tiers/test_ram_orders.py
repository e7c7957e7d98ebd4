"""Who leaves the memory tier first is a setting, and the budget holds whoever it is."""

from __future__ import annotations

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.tiers.ram import ENTRY_OVERHEAD, ORDERS, RamSettings, RamStore
from kvtrove.kv.tiers.spec import parse_tier
from kvtrove.kv.tiers.store import Found
from tests.tiers.rows import key, row

SIZE = 1000


@pytest.mark.parametrize("eviction", ORDERS)
def test_a_row_that_is_used_outlives_a_scan(eviction: str) -> None:
    """All orders but LRU remember that it was used, however many rows pass by once; LRU as long as it is used."""
    store = RamStore(RamSettings(20 * (SIZE + ENTRY_OVERHEAD), eviction=eviction))
    content = memoryview(bytearray(SIZE))
    store.put([key(0)], [row(0, SIZE)])
    for number in range(1, 200):
        store.put([key(number)], [row(number, SIZE)])
        if number % 15 == 0:
            assert store.get([key(0)], [content]).ok
            assert bytes(content) == bytes(row(0, SIZE))
        [figures] = store.figures()
        assert figures.nbytes <= store.settings.size
    assert figures.entries == 20
    assert figures.evicted == 180
    store.delete([key(0)])
    assert store.lookup([key(0)]) == [Found.MISSING]
    store.close()


def test_it_is_an_option_of_the_memory_tier_alone() -> None:
    assert parse_tier("ram:1MiB,eviction=s3fifo") == RamSettings(1 << 20, eviction="s3fifo")
    with pytest.raises(ConfigError, match="eviction: 'workload' is not one of lru, s3fifo"):
        parse_tier("ram:1MiB,eviction=workload")
    with pytest.raises(ConfigError, match="tier disk: no option 'eviction'"):
        parse_tier("disk:/x,1GiB,eviction=lru")
