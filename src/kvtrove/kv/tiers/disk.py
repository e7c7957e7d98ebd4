"""DiskStore: rows in append-only files that a killed process leaves readable, and that are verified when they are read.

lookup ──> dictionary                                     memory alone
get ─────> neighbours joined to runs ──> reader threads ──> header, CRC-32C ──> rows of the caller
put ─────> copy ──> writer thread
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.admission import Admission, Admit
from kvtrove.kv.tiers.desk import AtDesk, Desk, Job, Lane
from kvtrove.kv.tiers.directory import Directory
from kvtrove.kv.tiers.disk_log import DiskLog, Durability
from kvtrove.kv.tiers.disk_writer import DiskWriter, describe
from kvtrove.kv.tiers.files import Files
from kvtrove.kv.tiers.health import Health
from kvtrove.kv.tiers.layout import HEADER_BYTES, Kind, entry_bytes, format_field, read_header
from kvtrove.kv.tiers.segment import Place
from kvtrove.kv.tiers.store import Found, Outcome, Ticket, TierFigures, evicted_reason

log = logging.getLogger(__name__)

READERS = 4  # threads
RUN_BYTES = 4 << 20  # read at once at most, unless one row is longer
REFRESH_SECONDS = 1.0  # after which a reader of another's directory looks for what is new
CLOSE_SECONDS = 5.0

Run = list[tuple[int, Place]]
"""Neighbours on the disk: (index of the ticket's key, where its row is)."""


@dataclass(frozen=True)
class DiskSettings:
    """What a disk tier is opened with.

    size: bytes that all files and what is in flight may take. admit: "first" keeps what is put, "second" what is put
    for the second time. timeout: seconds until an operation counts as failed, beyond those of 50 MB/s for its bytes.
    in_flight: bytes of rows that may wait to be written. read_only: never write, and wait for nobody's lock.
    """

    path: str
    size: int
    durability: Durability = "relaxed"
    admit: Admit = "first"
    timeout: float = 2.0
    in_flight: int = 64 << 20
    read_only: bool = False

    @property
    def segment_bytes(self) -> int:
        """256 MiB, less for a small tier and more for one that would consist of too many open files."""
        return max(min(256 << 20, self.size // 16), self.size // 256)


class DiskStore(AtDesk):
    """A `BlockStore` on a directory. format_id, fingerprint: of the rows, written to and required of their headers."""

    def __init__(
        self, settings: DiskSettings, format_id: str = "", fingerprint: bytes = b"", files: Files | None = None
    ) -> None:
        self.name = "disk"
        self.settings = settings
        self._format = format_field(format_id)
        self._fingerprint = fingerprint.ljust(32, b"\0")
        self._desk = Desk(self.name, settings.timeout)
        self._reads = Health(f"tier disk, reading {settings.path}", self._desk.error)
        self._writes = Health(f"tier disk, writing {settings.path}", self._desk.error)
        self._directory = Directory(settings.path, write=not settings.read_only, files=files or Files())
        for notice in self._directory.notices:
            log.warning("%s", notice)
        self._lane = Lane(f"{self.name} reader", READERS)
        self._scratch = threading.local()
        self._admission = Admission(settings.admit)
        self._refreshed = time.monotonic()
        self._is_gone = False
        self._writer: DiskWriter | None = None
        if self._directory.is_writer:
            self._writer = DiskWriter(
                self._directory,
                DiskLog(self._directory, settings.durability, settings.segment_bytes),
                self._desk,
                self._writes,
                budget=settings.size,
                format_id=self._format,
                fingerprint=self._fingerprint,
                on_gone=self._directory_is_gone,
            )

    # ---- the store ----

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        if not self._can_read():
            return [Found.MISSING] * len(keys)
        if self._writer is None and time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._lane.submit(self._refresh)
        entries, pending = self._directory.entries, self._writer.pending if self._writer else {}
        return [Found.HERE if key in entries or key in pending else Found.MISSING for key in keys]

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("get", keys, rows)
        if not self._can_read():
            job.end(Outcome.MISS)
            return job.ticket
        pending = self._writer.pending if self._writer else {}
        wanted: Run = []
        for i, key in enumerate(keys):
            if (item := pending.get(key)) is not None:
                job.deliver(i, memoryview(item.content))
            elif (place := self._directory.entries.get(key)) is None or place.length != rows[i].nbytes:
                job.settle(i, Outcome.MISS)
            else:
                wanted.append((i, place))
        for run in _runs(wanted):
            self._lane.submit(self._read, job, run)
        return job.ticket

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("put", keys, rows)
        writer = self._writer
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if key in self._directory.entries:
                job.settle(i, Outcome.OK)
            elif writer is None or not self._admits(writer, key, row.nbytes):
                job.settle(i, Outcome.DECLINED)
            else:
                writer.add(key, row, job, i)
        return job.ticket

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if self._writer is not None:
                self._writer.cancel(key)
            place = self._directory.drop(key)
            if place is not None and self._writer is not None:
                self._writer.forget(key, place, Kind.DELETED)

    def reason(self, key: bytes) -> str | None:
        return evicted_reason(self.name, self._directory.evicted.age(key))

    def figures(self) -> Sequence[TierFigures]:
        writer = self._writer
        notices = (*self._directory.notices, *self._reads.notices, *self._writes.notices)
        if self._hangs():
            notices = (*notices, f"tier disk, {self.settings.path}: an operation hangs")
        return (
            self._desk.figures(
                self.name,
                entries=len(self._directory.entries) + (len(writer.pending) if writer else 0),
                nbytes=self._directory.nbytes + (writer.pending_bytes if writer else 0),
                budget=self.settings.size,
                notices=notices,
            ),
        )

    def close(self) -> None:
        ended = self._writer is None or self._writer.close(CLOSE_SECONDS)
        ended = self._lane.close(CLOSE_SECONDS) and ended
        self._desk.close()
        if ended:
            self._directory.close()
        else:
            log.warning("tier disk: %s hangs; it is left as it is", self.settings.path)

    # ---- the parts ----

    def _hangs(self) -> bool:
        slowest = max(self._lane.busy_for(), self._writer.busy_for() if self._writer else 0.0)
        return slowest > self.settings.timeout

    def _can_read(self) -> bool:
        return self._reads.is_usable and not self._is_gone and self._lane.busy_for() <= self.settings.timeout

    def _admits(self, writer: DiskWriter, key: bytes, nbytes: int) -> bool:
        if self._is_gone or not self._writes.is_usable or writer.busy_for() > self.settings.timeout:
            return False
        if nbytes == 0 or entry_bytes(nbytes) > self.settings.segment_bytes:
            return False
        if key not in writer.pending and writer.pending_bytes + nbytes > self.settings.in_flight:
            return False
        return self._admission.admits(key)

    def _read(self, job: Job, run: Run) -> None:
        """Read neighbours at once, verify and deliver each. In a thread."""
        if job.is_over:
            return
        segment, start = run[0][1].segment, run[0][1].offset
        buffer = self._buffer(run[-1][1].stop - start)
        try:
            count = segment.read(start, buffer)
        except OSError as error:
            for i, _ in run:
                job.settle(i, self._failed(error))
            return
        self._reads.worked()
        for i, place in run:
            key = job.ticket.keys[i]
            row = self._verified(key, place, buffer[place.offset - start : min(place.stop - start, count)])
            if isinstance(row, memoryview):
                self._directory.touched.add(key)
                job.deliver(i, row)
                continue
            if row is Outcome.CHECKSUM and self._directory.drop(key, place) and self._writer:
                self._writer.forget(key, place, Kind.QUARANTINED)
            if row is Outcome.CHECKSUM:
                told = f"damaged rows are computed again; `kvtrove cache verify {self.settings.path}` counts them"
                self._reads.got_around(row.value, told)
            job.settle(i, row)

    def _verified(self, key: bytes, place: Place, entry: memoryview) -> memoryview | Outcome:
        """The row of an entry, if header and content are what the index promised."""
        header = read_header(entry)
        row = entry[HEADER_BYTES : HEADER_BYTES + place.length]
        if header is None or (header.key, header.length, header.crc) != (key, place.length, place.crc):
            return Outcome.CHECKSUM
        if (header.format_id, header.fingerprint) != (self._format, self._fingerprint):
            return Outcome.MISS  # another engine's: its key is right, so nothing is wrong with the row
        return row if row.nbytes == place.length and crc32c(row) == place.crc else Outcome.CHECKSUM

    def _failed(self, error: OSError) -> Outcome:
        if error.errno == errno.ENOENT and not self._directory.is_gone():
            return Outcome.MISS  # evicted since
        if error.errno == errno.ENOENT:
            self._directory_is_gone()
        else:
            self._reads.failed(*describe(error))
        return Outcome.ERROR

    def _directory_is_gone(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._writes.failed("directory gone", f"{self.settings.path}; start again to use it", at_once=True)
            self._directory.forget_all()

    def _refresh(self) -> None:
        try:
            self._directory.refresh()
        except OSError as error:
            if self._directory.is_gone():
                self._directory_is_gone()
            else:
                self._reads.failed(*describe(error))

    def _buffer(self, nbytes: int) -> memoryview:
        """Memory of this thread, kept from run to run."""
        kept: bytearray | None = getattr(self._scratch, "kept", None)
        if kept is None or len(kept) < nbytes:
            kept = self._scratch.kept = bytearray(max(nbytes, RUN_BYTES))
        return memoryview(kept)[:nbytes]


def _runs(wanted: Run) -> list[Run]:
    """Rows that lie side by side on the disk, joined up to RUN_BYTES."""
    wanted.sort(key=lambda item: (item[1].segment.number, item[1].offset))
    runs: list[Run] = []
    for i, place in wanted:
        last = runs[-1] if runs else None
        if last is not None:
            first, end = last[0][1], last[-1][1]
            follows = end.segment is place.segment and end.stop == place.offset
            if follows and place.stop - first.offset <= RUN_BYTES:
                last.append((i, place))
                continue
        runs.append([(i, place)])
    return runs
