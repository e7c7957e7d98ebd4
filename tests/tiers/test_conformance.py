"""What every store promises, whatever its medium. A new store adds itself to `STORES`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.ram import RamSettings, RamStore
from kvtrove.kv.tiers.redis import RedisSettings, RedisStore
from kvtrove.kv.tiers.stack import Tiers
from kvtrove.kv.tiers.store import BlockStore, Found, Outcome, Ticket, group_key
from tests.faulty_store import FAULTS, FaultyStore
from tests.tiers.redis_server import server_url
from tests.tiers.rows import ROW, get, key, known, put, row, until, wait

Opener = Callable[[Path], BlockStore]
STORES: dict[str, Opener] = {
    "dictionary": lambda here: FaultyStore(),
    "late dictionary": lambda here: FaultyStore(delay=2),
    "disk, strict": lambda here: DiskStore(DiskSettings(str(here / "tier"), 64 << 20, "strict")),
    "disk, relaxed": lambda here: DiskStore(DiskSettings(str(here / "tier"), 64 << 20, "relaxed")),
    "disk, off": lambda here: DiskStore(DiskSettings(str(here / "tier"), 64 << 20, "off")),
    "ram": lambda here: RamStore(RamSettings(64 << 20)),
    "ram, zstd": lambda here: RamStore(RamSettings(64 << 20, "zstd")),
    "redis": lambda here: RedisStore(RedisSettings(server_url(here), 64 << 20, key=bytes(32))),
    "stack of one": lambda here: Tiers([FaultyStore(delay=1)]),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockStore]:
    opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


def test_rows_come_back_as_they_were_put(store: BlockStore) -> None:
    assert known(store, [0, 1]) == [Found.MISSING, Found.MISSING]
    assert put(store, range(8)).ok
    assert known(store, [0, 7, 8]) == [Found.HERE, Found.HERE, Found.MISSING]
    ticket, rows = get(store, [5, 0, 7])
    assert ticket.ok
    assert rows == [row(5), row(0), row(7)]
    assert ticket.nbytes == 3 * ROW
    assert all(ticket.sources)


def test_a_chain_with_a_gap_brings_what_there_is(store: BlockStore) -> None:
    put(store, [1, 3])
    ticket, rows = get(store, [1, 2, 3])
    assert ticket.outcomes == [Outcome.OK, Outcome.MISS, Outcome.OK]
    assert (rows[0], rows[2]) == (row(1), row(3))
    assert not ticket.ok


def test_the_caller_may_reuse_rows_as_soon_as_put_returns(store: BlockStore) -> None:
    content = row(1)
    ticket = store.put([key(1)], [content])
    content[:] = bytes(ROW)
    wait(store, ticket)
    assert get(store, [1])[1] == [row(1)]


def test_a_key_that_is_there_is_kept_as_it_is(store: BlockStore) -> None:
    put(store, [1])
    before = store.figures()[0].nbytes
    assert put(store, [1]).ok
    assert get(store, [1])[1] == [row(1)]
    assert store.figures()[0].nbytes == before


def test_a_row_of_another_length_is_no_hit(store: BlockStore) -> None:
    put(store, [1])
    other = [memoryview(bytearray(ROW + 1))]
    assert wait(store, store.get([key(1)], other)).outcomes[0] in (Outcome.MISS, Outcome.CHECKSUM)


def test_what_was_deleted_is_not_found(store: BlockStore) -> None:
    put(store, [1, 2])
    store.delete([key(1), key(9)])
    assert known(store, [1, 2]) == [Found.MISSING, Found.HERE]
    assert get(store, [1])[0].outcomes == [Outcome.MISS]
    assert put(store, [1]).ok
    assert get(store, [1])[1] == [row(1)]


def test_nothing_is_asked_and_nothing_comes(store: BlockStore) -> None:
    assert store.lookup([]) == []
    assert wait(store, store.put([], [])).ok
    assert wait(store, store.get([], [])).ok
    assert store.poll() == []


def test_many_tickets_are_out_at_once(store: BlockStore) -> None:
    writes = [store.put([key(i)], [row(i)]) for i in range(20)]
    written: list[Ticket] = []
    until(lambda: written.extend(store.poll()) or len(written) == len(writes))  # type: ignore[func-returns-value]
    known(store, range(20))
    rows = [memoryview(bytearray(ROW)) for _ in range(20)]
    reads = [store.get([key(i)], [rows[i]]) for i in range(20)]
    back: list[Ticket] = []
    for _ in range(2000):
        back += store.poll()
        if len(back) == len(reads):
            break
        time.sleep(0.005)
    assert sorted(map(id, back)) == sorted(map(id, reads))
    assert rows == [row(i) for i in range(20)]


def test_figures_add_up(store: BlockStore) -> None:
    put(store, [1, 2])
    known(store, [1, 2])
    get(store, [1, 2])
    (figures,) = store.figures()
    assert (figures.hits, figures.misses, figures.stored, figures.entries) == (2, 0, 2, 2)
    assert 0 < figures.nbytes <= figures.budget
    assert not figures.errors
    assert not figures.notices


def test_a_closed_store_answers_what_was_out() -> None:
    store = FaultyStore(delay=100)
    ticket = store.put([key(1)], [row(1)])
    store.close()
    assert ticket.done


def test_groups_of_a_position_have_keys_of_their_own() -> None:
    keys = {group_key(key(7), group) for group in range(1000)}
    assert len(keys) == 1000
    assert group_key(key(7), 0) == key(7)
    assert {len(k) for k in keys} == {32}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_at_the_nth_operation_says_so_and_goes_on(fault: str) -> None:
    for n in range(8):  # 4 puts, then 4 gets
        store = FaultyStore(fault, {n})  # type: ignore[arg-type]
        put(store, range(4))
        ticket, rows = get(store, range(4))
        for i, outcome in enumerate(ticket.outcomes):
            assert (rows[i] == row(i)) is (outcome is Outcome.OK)
        assert [i for i, outcome in enumerate(ticket.outcomes) if outcome is not Outcome.OK] == [n % 4]
        assert put(store, range(4)).ok
        assert get(store, range(4))[0].ok
