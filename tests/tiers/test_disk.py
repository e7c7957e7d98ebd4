"""The disk tier: restarts, damage, faults of the system, the budget, two engines on one directory."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.files import Files
from kvtrove.kv.tiers.store import Found, Outcome
from tests.tiers.disk_in_memory import Disk, MemoryFiles
from tests.tiers.rows import ROW, get, key, known, put, row, until, wait

ENTRY = 8192  # of a row of 5000 bytes
Opener = Callable[..., DiskStore]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Opener]:
    """`tier(durability=..., entries=...)` opens a store on one directory; all are closed in the end."""
    opened: list[DiskStore] = []

    def open_(
        entries: int = 1000, files: Files | None = None, fingerprint: bytes = b"spec", **settings: object
    ) -> DiskStore:
        wanted = DiskSettings(str(tmp_path / "tier"), entries * ENTRY, **settings)  # type: ignore[arg-type]
        opened.append(DiskStore(wanted, "int8/1", fingerprint, files))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def files_of(path: Path, suffix: str) -> list[Path]:
    return sorted(path.glob(f"*{suffix}"))


def test_a_restart_finds_everything(tier: Opener) -> None:
    store = tier()
    assert put(store, range(40)).ok
    store.delete([key(3)])
    store.close()
    again = tier()
    assert known(again, [2, 3]) == [Found.HERE, Found.MISSING]
    ticket, rows = get(again, [39, 0, 17])
    assert ticket.ok
    assert rows == [row(39), row(0), row(17)]
    assert put(again, [3]).ok


@pytest.mark.parametrize("offset", [0, 40, 128, 128 + ROW - 1], ids=["magic", "header", "first byte", "last byte"])
def test_a_flipped_bit_is_a_miss_and_never_found_again(tier: Opener, tmp_path: Path, offset: int) -> None:
    store = tier()
    put(store, [0, 1, 2])
    with files_of(tmp_path / "tier", ".rows")[0].open("r+b") as file:
        file.seek(ENTRY + offset)
        byte = file.read(1)
        file.seek(ENTRY + offset)
        file.write(bytes([byte[0] ^ 4]))
    ticket, rows = get(store, [0, 1, 2])
    assert ticket.outcomes == [Outcome.OK, Outcome.CHECKSUM, Outcome.OK]
    assert (rows[0], rows[2]) == (row(0), row(2))
    assert known(store, [1]) == [Found.MISSING]
    (figures,) = store.figures()
    assert figures.errors == {"checksum": 1}
    assert any("checksum" in notice for notice in figures.notices)
    store.close()
    again = tier()
    assert known(again, [0, 1, 2]) == [Found.HERE, Found.MISSING, Found.HERE]
    assert put(again, [1]).ok  # computed again, kept again
    assert get(again, [1])[1] == [row(1)]


@pytest.mark.parametrize("suffix", [".rows", ".index"])
@pytest.mark.parametrize("lost", [1, 64, 4000, 9000])
def test_a_torn_file_loses_its_end_alone(tier: Opener, tmp_path: Path, suffix: str, lost: int) -> None:
    store = tier()
    put(store, range(8))
    store.close()
    path = files_of(tmp_path / "tier", suffix)[0]
    os.truncate(path, max(0, path.stat().st_size - lost))
    again = tier()
    found = known(again, range(8))
    kept = 8 if suffix == ".index" else 8 - -(-lost // ENTRY)
    assert found == [Found.HERE] * kept + [Found.MISSING] * (8 - kept)
    assert get(again, range(kept))[1] == [row(i) for i in range(kept)]
    assert put(again, range(8)).ok
    assert get(again, range(8))[0].ok


def test_garbage_in_the_files_is_never_read(tier: Opener, tmp_path: Path) -> None:
    store = tier(entries=32)
    put(store, range(9))
    store.close()
    for number, path in enumerate(files_of(tmp_path / "tier", "")):
        if path.suffix in (".rows", ".index"):
            content = bytearray(path.read_bytes())
            for i in range(number, len(content), 97):
                content[i] ^= 0x5A
            path.write_bytes(content)
    again = tier(entries=32)
    assert get(again, range(9))[0].outcomes.count(Outcome.OK) == 0
    assert put(again, range(9)).ok


def test_rows_of_another_model_are_no_hits(tier: Opener) -> None:
    store = tier()
    put(store, [1])
    store.close()
    other = tier(fingerprint=b"another")
    assert get(other, [1])[0].outcomes == [Outcome.MISS]
    assert not other.figures()[0].errors


def test_the_budget_holds_at_every_moment_and_what_is_read_stays(tier: Opener, tmp_path: Path) -> None:
    store = tier(entries=64)  # segments of 4
    for first in range(0, 180, 3):
        put(store, range(first, first + 3))
        get(store, [0])
        on_disk = sum(path.stat().st_size for path in (tmp_path / "tier").iterdir())
        (figures,) = store.figures()
        assert on_disk <= figures.budget
        assert figures.nbytes <= figures.budget
    assert get(store, [0, 179])[0].ok
    assert known(store, [1]) == [Found.MISSING]
    assert str(store.reason(key(1))).startswith("evicted from disk")
    assert store.figures()[0].evicted >= 180 - 64


def test_a_smaller_budget_holds_from_the_start(tier: Opener) -> None:
    store = tier(entries=200)
    put(store, range(150))
    store.close()
    again = tier(entries=100)
    put(again, [999])
    assert again.figures()[0].nbytes <= 100 * ENTRY
    assert known(again, [0, 149]) == [Found.MISSING, Found.HERE]


def test_deleted_segments_leave_the_disk(tier: Opener, tmp_path: Path) -> None:
    store = tier(entries=64)
    put(store, range(20))
    before = len(files_of(tmp_path / "tier", ".rows"))
    store.delete([key(i) for i in range(20)])
    put(store, [50])
    until(lambda: len(files_of(tmp_path / "tier", ".rows")) < before)


def test_second_touch(tier: Opener) -> None:
    store = tier(admit="second")
    assert put(store, [1, 2]).outcomes == [Outcome.DECLINED] * 2
    assert put(store, [1]).ok
    assert known(store, [1, 2]) == [Found.HERE, Found.MISSING]
    assert store.figures()[0].declined == 2


def test_what_is_in_flight_is_bounded(tier: Opener) -> None:
    files = Hanging("write")
    store = tier(files=files, in_flight=3 * ENTRY, durability="off")
    put(store, [0])
    files.hang.clear()
    tickets = [store.put([key(i)], [row(i)]) for i in range(1, 9)]
    declined = [t for t in tickets if t.outcomes[0] is Outcome.DECLINED]
    assert 4 <= len(declined) <= 6
    assert known(store, [1]) == [Found.HERE]  # read from where it waits
    assert get(store, [1])[1] == [row(1)]
    files.hang.set()
    for ticket in tickets[:2]:
        assert ticket.done or wait(store, ticket).ok


# ---- faults of the system ----


class Hanging(Files):
    """The named call waits while `hang` is not set."""

    def __init__(self, name: str) -> None:
        self.hang = threading.Event()
        self.hang.set()
        call = getattr(self, name)

        def hanging(*args: object) -> object:
            self.hang.wait(20)
            return call(*args)

        setattr(self, name, hanging)


class Failing(Files):
    """The named calls raise `error` while it is set."""

    def __init__(self, *names: str) -> None:
        self.error: int | None = None
        for name in names:
            setattr(self, name, self._failing(getattr(self, name)))

    def _failing(self, call: Callable[..., object]) -> Callable[..., object]:
        def maybe(*args: object, **named: object) -> object:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            return call(*args, **named)

        return maybe


def test_a_hung_disk_is_a_miss_and_never_touches_rows_again(tier: Opener) -> None:
    files = Hanging("read")
    store = tier(files=files, timeout=0.1)
    put(store, range(4))
    files.hang.clear()
    ticket, rows = get(store, range(4))
    assert ticket.outcomes == [Outcome.TIMEOUT] * 4
    until(lambda: known(store, [0]) == [Found.MISSING])  # nobody waits for it again while it hangs
    assert get(store, [0])[0].outcomes == [Outcome.MISS]
    assert any("hangs" in notice for notice in store.figures()[0].notices)
    files.hang.set()
    until(lambda: known(store, [0]) == [Found.HERE])
    assert all(bytes(r) == bytes(ROW) for r in rows)
    assert get(store, range(4))[0].ok


def test_a_hung_write_ends_its_ticket_and_is_not_waited_for(tier: Opener) -> None:
    files = Hanging("sync")
    store = tier(files=files, timeout=0.1, durability="strict")
    files.hang.clear()
    assert put(store, [1]).outcomes == [Outcome.TIMEOUT]
    until(lambda: put(store, [2]).outcomes == [Outcome.DECLINED])
    files.hang.set()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.ENOSPC, "disk full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.EIO, "disk error")],
)
def test_a_disk_that_cannot_be_written_is_said_once_and_read_on(
    tier: Opener, caplog: pytest.LogCaptureFixture, error: int, reason: str
) -> None:
    files = Failing("write")
    store = tier(files=files)
    put(store, range(3))
    store.put([], [])
    files.error = error
    if error == errno.ENOSPC:
        store.delete([key(i) for i in range(3)])  # or their segment would make room
    for i in range(10, 16):
        assert put(store, [i]).outcomes[0] in (Outcome.ERROR, Outcome.DECLINED)
    (figures,) = store.figures()
    assert figures.errors[reason] >= 3
    assert sum(reason in message for message in caplog.messages) == 1
    assert any(reason in notice for notice in figures.notices)
    if error != errno.ENOSPC:
        assert get(store, range(3))[0].ok
    files.error = None
    store._writes._rest_until = 0  # the rest is over
    assert put(store, [20]).ok
    assert not store.figures()[0].notices


def test_what_cannot_be_deleted_is_still_found(tier: Opener) -> None:
    """A directory that may not be changed any more, and a tier that would have to make room."""
    files = Failing("remove")
    store = tier(entries=64, files=files)
    put(store, range(40))
    files.error = errno.EACCES
    for first in range(100, 140, 2):
        put(store, [first, first + 1])
    assert store.figures()[0].errors["permission"] >= 3
    assert get(store, range(40))[0].ok


def test_a_segment_that_cannot_be_opened_keeps_its_number(tier: Opener, tmp_path: Path) -> None:
    store = tier()
    put(store, range(3))
    store.close()
    index, content = files_of(tmp_path / "tier", ".index")[0], files_of(tmp_path / "tier", ".rows")[0].read_bytes()
    index.rename(tmp_path / "elsewhere")
    index.mkdir()  # which nobody can open as a file, whoever runs this
    again = tier()
    assert any("segment 1 of" in notice for notice in again.figures()[0].notices)
    assert put(again, [7]).ok
    assert [path.stem for path in files_of(tmp_path / "tier", ".rows")] == ["00000001", "00000002"]
    assert files_of(tmp_path / "tier", ".rows")[0].read_bytes() == content


def test_a_full_disk_makes_room_by_giving_up_a_segment(caplog: pytest.LogCaptureFixture) -> None:
    files = MemoryFiles(Disk(), full_at=20 * ENTRY)
    store = DiskStore(DiskSettings("/tier", 64 * ENTRY), files=files)
    for first in range(0, 60, 3):
        assert put(store, range(first, first + 3)).ok
    assert get(store, [57, 58, 59])[0].ok
    assert sum(len(file.content) for file in files.disk.names.values()) <= 20 * ENTRY
    (figures,) = store.figures()
    assert figures.errors["disk full"] > 1
    assert any("disk full" in notice for notice in figures.notices)
    assert sum("disk full" in message for message in caplog.messages) == 1
    store.close()


def test_a_disk_that_cannot_be_read_is_an_error_and_recovers(tier: Opener) -> None:
    files = Failing("read")
    store = tier(files=files)
    put(store, range(3))
    files.error = errno.EIO
    for i in range(3):
        assert get(store, [i])[0].outcomes == [Outcome.ERROR]
    assert known(store, [0]) == [Found.MISSING]  # it rests
    files.error = None
    store._reads._rest_until = 0
    assert get(store, range(3))[0].ok


def test_a_segment_that_leaves_before_it_is_read_is_a_miss_and_no_fault(tier: Opener) -> None:
    put(tier(), range(3))
    store = tier(read_only=True)
    store._directory.segments[1].close()
    assert get(store, range(3))[0].outcomes == [Outcome.MISS] * 3
    assert not store.figures()[0].errors


def test_a_directory_deleted_under_us_ends_the_tier_and_nothing_else(
    tier: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tier()
    put(store, range(3))
    shutil.rmtree(tmp_path / "tier")
    assert put(store, [5]).outcomes == [Outcome.ERROR]
    assert put(store, [6]).outcomes == [Outcome.DECLINED]
    assert known(store, [0]) == [Found.MISSING]
    assert store.figures()[0].nbytes == 0
    assert sum("directory gone" in message for message in caplog.messages) == 1
    assert not (tmp_path / "tier").exists()  # it may have been a mount: the disk below is not ours


def test_a_clock_that_jumps_changes_nothing(tier: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tier()
    put(store, [1])
    for i, jump in enumerate((-1e9, 0.0, 1e10)):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        assert put(store, [i + 2]).ok
        assert get(store, [1])[0].ok


# ---- two engines ----


def test_the_second_engine_reads_what_the_first_one_writes(tier: Opener, caplog: pytest.LogCaptureFixture) -> None:
    first = tier(durability="off")
    put(first, [1])
    second = tier()
    assert sum("another engine writes" in message for message in caplog.messages) == 1
    assert get(second, [1])[1] == [row(1)]
    assert put(second, [2]).outcomes == [Outcome.DECLINED]
    put(first, [2])
    second._refreshed = 0
    known(second, [2])
    until(lambda: known(second, [2]) == [Found.HERE])
    assert get(second, [2])[1] == [row(2)]
    third = tier(read_only=True)
    assert get(third, [1, 2])[0].ok


def test_a_reader_notices_what_was_evicted(tier: Opener) -> None:
    writer = tier(entries=64, durability="off")
    put(writer, range(8))
    reader = tier(entries=64, read_only=True)
    for first in range(8, 200, 4):
        put(writer, range(first, first + 4))
    ticket, rows = get(reader, [0])
    assert ticket.outcomes == [Outcome.MISS] or rows == [row(0)]  # its file is open, or is not
    reader._refreshed = 0
    known(reader, [0])
    until(lambda: known(reader, [199]) == [Found.HERE])
    assert known(reader, [0, 199]) == [Found.MISSING, Found.HERE]


# ---- settings ----


def test_what_is_no_tier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("dear")
    with pytest.raises(ConfigError, match="holds other files"):
        DiskStore(DiskSettings(str(tmp_path), 1 << 20))
    with pytest.raises(ConfigError, match="cannot be used as a directory"):
        DiskStore(DiskSettings(str(tmp_path / "photo.jpg"), 1 << 20))
    with pytest.raises(ConfigError, match="cannot be used as a directory"):
        DiskStore(DiskSettings(str(tmp_path / "new"), 1 << 20, read_only=True))


def test_another_version_is_refused(tier: Opener, tmp_path: Path) -> None:
    store = tier()
    put(store, [1])
    store.close()
    (tmp_path / "tier" / "kvtrove.tier").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is damaged"):
        tier()


def test_opening_reads_the_index_alone(tier: Opener) -> None:
    """200,000 tokens in blocks of 32: 6250 records of 64 bytes."""
    store = tier(entries=10_000, in_flight=1 << 30)
    wait(store, store.put([key(i) for i in range(6250)], [row(i, 64) for i in range(6250)]))
    store.close()
    reads: list[int] = []
    files = Files()
    read = files.read
    files.read = lambda handle, offset, into: reads.append(into.nbytes) or read(handle, offset, into)  # type: ignore[func-returns-value,method-assign]
    again = tier(entries=10_000, files=files)
    assert again.figures()[0].entries == 6250
    assert sum(reads) < 64 * 6250 + 10_000
