"""DiskWriter: the one thread that writes to a tier's directory, and makes room in it.

put ──> pending ──> batch ──> DiskLog ──> directory.entries, ticket
                      └── room: whole segments leave, rows that were read since move on
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.desk import Desk, Job
from kvtrove.kv.tiers.directory import Directory
from kvtrove.kv.tiers.disk_log import SYNC_SECONDS, DiskLog, Row
from kvtrove.kv.tiers.health import Health
from kvtrove.kv.tiers.layout import HEADER_BYTES, RECORD_BYTES, Header, Kind, entry_bytes, now, read_header
from kvtrove.kv.tiers.segment import Place, Segment
from kvtrove.kv.tiers.store import Outcome

BATCH_BYTES = 32 << 20


@dataclass(eq=False, slots=True)
class Pending:
    """A row on its way to the disk, and the tickets that wait for it."""

    key: bytes
    content: bytes
    waiting: list[tuple[Job, int]] = field(default_factory=list)

    @property
    def entry(self) -> int:
        return entry_bytes(len(self.content))

    @property
    def cost(self) -> int:
        """Bytes of the entry and of its record."""
        return self.entry + RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Forget:
    """A key that was deleted, or whose row is damaged."""

    key: bytes
    place: Place
    kind: Kind


Item = Pending | Forget | None


class DiskWriter:
    """Writes in batches, evicts whole segments, and keeps within `budget` bytes.

    pending: rows that `put` has handed over; they can be read from there meanwhile. format_id, fingerprint: 32 bytes
    each, for the headers. on_gone: called when the directory is not there any more.
    """

    def __init__(
        self,
        directory: Directory,
        log: DiskLog,
        desk: Desk,
        health: Health,
        *,
        budget: int,
        format_id: bytes,
        fingerprint: bytes,
        on_gone: Callable[[], None],
    ) -> None:
        self.pending: dict[bytes, Pending] = {}
        self.pending_bytes = 0  # of entries and their records
        self._directory = directory
        self._log = log
        self._desk = desk
        self._health = health
        self._budget = budget
        self._format_id, self._fingerprint = format_id, fingerprint
        self._on_gone = on_gone
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._serve, name=f"{desk.name} writer", daemon=True)
        self._thread.start()

    # ---- called by the store ----

    def add(self, key: bytes, row: memoryview, job: Job, i: int) -> None:
        """Take a copy of the row to write. The key is settled when it is as durable as was asked for."""
        with self._lock:
            there = self.pending.get(key)
            if there is not None:
                there.waiting.append((job, i))
                return
            item = Pending(key, bytes(row), [(job, i)])
            self.pending[key] = item
            self.pending_bytes += item.cost
        self._queue.put(item)

    def cancel(self, key: bytes) -> None:
        """A row that is on its way shall not be found."""
        item = self.pending.get(key)
        if item is not None and self._take_off(item):
            self._settle(item, Outcome.OK)

    def forget(self, key: bytes, place: Place, kind: Kind) -> None:
        """Make the index say that the key is deleted or damaged."""
        self._queue.put(Forget(key, place, kind))

    def busy_for(self) -> float:
        """Seconds that the present work has taken."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, seconds: float) -> bool:
        """Write what is queued. False when that takes longer than `seconds`."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # ---- the thread ----

    def _serve(self) -> None:
        batch: list[Item] = []  # the first turn only makes room: the budget may be smaller than it was
        while True:
            self._busy_since = time.monotonic()
            is_last = None in batch
            try:
                self._write(batch)
                if is_last or self._log.is_sync_due:
                    self._log.sync()
            except Exception as error:  # whatever it is, the thread goes on
                self._health.failed(*describe(error))
                self._log.abandon()
            finally:
                for item in batch:
                    if isinstance(item, Pending) and self._take_off(item):
                        self._settle(item, Outcome.ERROR)
                self._busy_since = None
            if is_last:
                return
            batch = self._next_batch()

    def _next_batch(self) -> list[Item]:
        """What is queued, as long as it fits a batch; empty when only a sync is due. Waits for the first."""
        try:
            batch = [self._queue.get(timeout=SYNC_SECONDS if self._log.has_unsynced else None)]
        except queue.Empty:
            return []
        nbytes = 0
        while nbytes < BATCH_BYTES and batch[-1] is not None:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            nbytes += item.entry if isinstance(item, Pending) else 0
            batch.append(item)
        return batch

    def _write(self, batch: list[Item]) -> None:
        if self._directory.is_gone():
            self._on_gone()
            return
        self._make_room()
        for item in batch:
            if isinstance(item, Forget):
                self._log.forget(item.kind, item.key, item.place)
        rows = [item for item in batch if isinstance(item, Pending) and self.pending.get(item.key) is item]
        for part in self._parts(rows):
            self._append([(self._header(row), row.content) for row in part])
            self._written(part)
        for segment in list(self._directory.segments.values()):
            if segment.size and not segment.live and segment is not self._log.active:
                self._remove(segment)

    def _parts(self, rows: list[Pending]) -> Iterator[list[Pending]]:
        """Cut a batch where a segment is full. A row that is longer than a segment has one for itself."""
        part: list[Pending] = []
        room = self._log.room if rows else 0
        for row in rows:
            if row.entry > room and (part or room < self._log.segment_bytes):
                if part:
                    yield part
                self._log.roll()
                part, room = [], self._log.room
            part.append(row)
            room -= row.entry
        if part:
            yield part

    def _header(self, row: Pending) -> Header:
        content = row.content
        return Header(row.key, len(content), crc32c(content), self._format_id, self._fingerprint, now())

    def _append(self, rows: list[Row]) -> None:
        try:
            self._log.append(rows)
        except OSError as error:
            reason = describe(error)[0]
            if reason != "disk full" or not self._evict(keep=False):
                raise
            self._log.append(rows)
            self._desk.error(reason)
            self._health.got_around(
                reason, "the oldest rows give way to new ones before the tier's own limit is reached"
            )

    def _written(self, rows: list[Pending]) -> None:
        self._health.worked()
        self._desk.count("stored", len(rows))
        self._desk.count("bytes_written", sum(len(row.content) for row in rows))
        for row in rows:
            if not self._take_off(row) and (place := self._directory.drop(row.key)) is not None:
                self.forget(row.key, place, Kind.DELETED)  # cancelled while it was written
            self._settle(row, Outcome.OK)

    # ---- room ----

    def _make_room(self) -> None:
        """All that is pending must fit, and half a segment more, where survivors of an eviction go first."""
        limit = self._budget - self._log.segment_bytes // 2
        while self._directory.nbytes + self.pending_bytes > limit and self._evict(keep=True):
            pass

    def _evict(self, *, keep: bool) -> bool:
        """Remove the segment with the fewest live bytes if half of it is dead, else the oldest. False: there is none.

        keep: rows that were read since they were written move on (FIFO with reinsertion, as CLOCK does); of a segment
        that is half dead all rows do.
        """
        segments = [segment for segment in self._directory.segments.values() if segment.size]
        if not segments:
            return False
        others = [segment for segment in segments if segment is not self._log.active]
        emptiest = min(others, key=lambda s: s.live / s.size, default=None)
        is_half_dead = emptiest is not None and emptiest.live * 2 < emptiest.size
        victim = emptiest if is_half_dead and emptiest is not None else min(segments, key=lambda s: s.number)
        if victim is self._log.active:
            self._log.roll()
        for kept in self._survivors(victim, everything=is_half_dead) if keep else ():
            if self._log.room < self._log.segment_bytes // 2:
                self._log.roll()
            self._log.append(kept)
        self._remove(victim)
        return True

    def _survivors(self, segment: Segment, *, everything: bool) -> Iterator[list[Row]]:
        """What moves on, batch by batch: half a segment at most, undamaged."""
        kept: list[Row] = []
        room, nbytes = self._log.segment_bytes // 2, 0
        for key, place in self._directory.rows_of(segment):
            cost = entry_bytes(place.length) + RECORD_BYTES
            if cost > room or not (everything or key in self._directory.touched):
                continue
            content = memoryview(bytearray(HEADER_BYTES + place.length))
            count = segment.read(place.offset, content)
            row, header = content[HEADER_BYTES:], read_header(content)
            if count < content.nbytes or header is None or header.key != key or crc32c(row) != place.crc:
                continue
            kept.append((header, row))
            room, nbytes = room - cost, nbytes + cost
            if nbytes >= BATCH_BYTES:
                yield kept
                kept, nbytes = [], 0
        if kept:
            yield kept

    def _remove(self, segment: Segment) -> None:
        lost = self._directory.remove(segment)
        self._log.let_go(segment)
        self._desk.count("evicted", lost)

    # ---- pending rows ----

    def _take_off(self, row: Pending) -> bool:
        """The row is pending no more; False when it was not."""
        with self._lock:
            if self.pending.get(row.key) is not row:
                return False
            del self.pending[row.key]
            self.pending_bytes -= row.cost
            return True

    @staticmethod
    def _settle(row: Pending, outcome: Outcome) -> None:
        for job, i in row.waiting:
            job.settle(i, outcome, len(row.content) if outcome is Outcome.OK else 0)


def describe(error: Exception) -> tuple[str, str]:
    """A short reason to count, and the system's words."""
    if not isinstance(error, OSError):
        return "internal error", repr(error)
    reasons = {
        errno.ENOSPC: "disk full",
        errno.EDQUOT: "disk full",
        errno.EROFS: "read-only",
        errno.EACCES: "permission",
        errno.EPERM: "permission",
        errno.ENOENT: "directory gone",
        errno.EMFILE: "too many open files",
    }
    return reasons.get(error.errno or 0, "disk error"), str(error)
