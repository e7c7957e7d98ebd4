"""Tiers on top of one another, and how users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.tiers.disk import DiskSettings
from kvtrove.kv.tiers.ram import RamSettings, RamStore
from kvtrove.kv.tiers.redis import RedisSettings
from kvtrove.kv.tiers.spec import parse_tier
from kvtrove.kv.tiers.stack import Tiers, open_tiers
from kvtrove.kv.tiers.store import BlockStore, Found, Outcome
from tests.faulty_store import FAULTS, FaultyStore
from tests.tiers.rows import ROW, get, key, known, put, row, wait


def test_a_hit_below_is_promoted(tmp_path: Path) -> None:
    tiers = open_tiers([f"ram:{4 * ROW}", f"disk:{tmp_path / 'tier'},64MiB"], "bf16", b"spec")
    assert put(tiers, range(8)).ok
    assert known(tiers, range(8)) == [Found.HERE] * 8
    ticket, rows = get(tiers, [0, 7])
    assert rows == [row(0), row(7)]
    assert ticket.sources == ["disk", "ram"]
    assert get(tiers, [0])[0].sources == ["ram"]
    assert [figures.name for figures in tiers.figures()] == ["ram", "disk"]
    assert str(tiers.reason(key(1))).startswith("evicted from ram")
    tiers.close()


def test_a_restart_is_warm(tmp_path: Path) -> None:
    specs = [f"ram:{40 * ROW}", f"disk:{tmp_path / 'tier'},64MiB"]
    tiers = open_tiers(specs, "bf16", b"spec")
    put(tiers, range(8))
    tiers.close()
    again = open_tiers(specs, "bf16", b"spec")
    ticket, rows = get(again, range(8))
    assert ticket.ok
    assert rows == [row(i) for i in range(8)]
    again.close()


def test_when_one_tier_cannot_be_opened_none_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    good = f"disk:{tmp_path / 'a'},64MiB"
    with pytest.raises(ConfigError, match="cannot be used as a directory"):
        open_tiers([good, f"disk:{tmp_path / 'file'},64MiB"], "bf16", b"spec")
    tiers = open_tiers([good, f"disk:{tmp_path / 'b'},64MiB"], "bf16", b"spec")
    assert put(tiers, [1]).ok
    assert [(f.name, f.stored, f.notices) for f in tiers.figures()] == [("disk", 1, ()), ("disk 2", 1, ())]
    tiers.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_one_tier_fails_at_the_next_one_has(fault: str) -> None:
    for n in range(4, 8):  # the gets
        upper, lower = FaultyStore(fault, {n}), FaultyStore(delay=1)  # type: ignore[arg-type]
        upper.name, lower.name = "upper", "lower"
        tiers = Tiers([upper, lower])
        assert put(tiers, range(4)).ok
        ticket, rows = get(tiers, range(4))
        assert ticket.ok
        assert rows == [row(i) for i in range(4)]
        assert ticket.sources == ["lower" if i == n - 4 else "upper" for i in range(4)]
        assert ticket.nbytes == 4 * ROW


def test_when_every_tier_fails_the_key_does() -> None:
    tiers = Tiers([FaultyStore("fail", {4}), FaultyStore("flip", {4})])
    put(tiers, range(4))
    ticket, rows = get(tiers, range(4))
    assert ticket.outcomes[0] not in (None, Outcome.OK)
    assert ticket.outcomes[1:] == [Outcome.OK] * 3
    assert rows[1:] == [row(i) for i in range(1, 4)]


def test_a_put_counts_when_one_tier_keeps_it() -> None:
    small: BlockStore = FaultyStore(budget=1)
    assert put(Tiers([small, FaultyStore()]), [1]).ok
    assert put(Tiers([small, FaultyStore("fail")]), [1]).outcomes == [Outcome.DECLINED]
    assert put(Tiers([]), [1]).outcomes == [Outcome.DECLINED]
    assert get(Tiers([]), [1])[0].outcomes == [Outcome.MISS]


def test_memory_holds_its_budget_and_the_longest_unused_leave() -> None:
    for codec in ("none", "zstd"):
        store = RamStore(RamSettings(10 * (ROW + 256), codec))  # type: ignore[arg-type]
        for i in range(200):
            put(store, [i])
            get(store, [0])
            assert store.figures()[0].nbytes <= 10 * (ROW + 256)
        assert known(store, [0, 199]) == [Found.HERE] * 2
        entries = store.figures()[0].entries
        assert (entries == 10) is (codec == "none")
        assert entries >= 10
        store.close()


def test_a_deleted_row_on_its_way_is_not_found() -> None:
    store = RamStore(RamSettings(1 << 20, "zstd"))
    ticket = store.put([key(1)], [row(1)])
    store.delete([key(1)])
    wait(store, ticket)
    assert known(store, [1]) == [Found.MISSING]
    assert store.figures()[0].nbytes == 0
    store.close()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("ram:8GiB", RamSettings(8 << 30)),
        ("ram:512MiB, codec=zstd, admit=second", RamSettings(512 << 20, "zstd", "second")),
        ("disk:/p,100GiB", DiskSettings("/p", 100 << 30)),
        (
            "disk:/p,1GiB,durability=strict,timeout=250ms,read_only=yes,in_flight=1MiB",
            DiskSettings("/p", 1 << 30, "strict", timeout=0.25, read_only=True, in_flight=1 << 20),
        ),
        ("redis://host:1/2", RedisSettings("redis://host:1/2")),
        ("redis://:word@host/0,1GiB,ttl=1h", RedisSettings("redis://:word@host/0", 1 << 30, 3600.0)),
    ],
)
def test_specs(text: str, settings: object) -> None:
    assert parse_tier(text) == settings


def test_a_disk_without_a_size_takes_half_of_what_is_free(tmp_path: Path) -> None:
    settings = parse_tier(f"disk:{tmp_path}/a/b")
    assert isinstance(settings, DiskSettings)
    assert 16 << 20 <= settings.size <= 64 << 30
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disc:/p", "did you mean 'disk'"),
        ("/p", "write for example ram:8GiB"),
        ("ram:", "write for example 8GiB"),
        ("ram:8GiB,9GiB", "several sizes"),
        ("ram:1GiB,codec=zstandard", "codec: 'zstandard' is not one of none, zstd"),
        ("disk:", "name a directory"),
        ("disk:/p,1MiB", "16MiB or more"),
        ("disk:/p,1GiB,durabilty=strict", "did you mean 'durability'"),
        ("disk:/p,1GiB,durability=paranoid", "is not one of off, relaxed, strict"),
        ("disk:/p,1GiB,timeout=soon", "write for example 500ms"),
        ("redis://host,ttl=0", "cannot read '0' as a time"),
    ],
)
def test_specs_that_cannot_work(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_tier(text)
