"""DiskLog: where rows are appended, and when they are as durable as was asked for.

    rows ──> (sync) ──> records ──> found, ticket OK

    durability    rows synced        records written    ticket is OK        lost when the power fails
    strict        with every batch   after that         after both          nothing that was OK
    relaxed       once a second      after that         rows are written    the last second
    off           never              with every batch   rows are written    what the system had not written yet

A killed process loses nothing that was OK with any of them: the system still has the bytes. Rows that no record names
are found by a scan when the directory is opened, so records need no sync before their segment is full.
"""

from __future__ import annotations

import contextlib
import time
from typing import Literal

from kvtrove.kv.tiers.directory import Directory
from kvtrove.kv.tiers.files import Buffer
from kvtrove.kv.tiers.layout import ALIGN, HEADER_BYTES, Header, Kind, Record, entry_bytes, now, record_of
from kvtrove.kv.tiers.segment import Place, Segment

Durability = Literal["off", "relaxed", "strict"]
DURABILITIES: tuple[Durability, ...] = ("off", "relaxed", "strict")
SYNC_SECONDS = 1.0
SYNC_BYTES = 256 << 20  # written without a sync at most, with "relaxed"
_PADDING = bytes(ALIGN)

Row = tuple[Header, Buffer]
"""Also of another model: what moves on keeps its header."""


class DiskLog:
    """Appends to the newest segment, and to the indexes of all. One thread calls it; OSError is the caller's.

    active: the segment that rows go to; None before the first. segment_bytes: at which a segment is full.
    """

    def __init__(self, directory: Directory, durability: Durability, segment_bytes: int) -> None:
        self.active: Segment | None = None
        self.segment_bytes = segment_bytes
        self._directory = directory
        self._durability = durability
        self._may_continue = True  # the last segment of an earlier run
        self._dirty: set[Segment] = set()  # with "relaxed": rows were written since the last sync
        self._unsynced: dict[Segment, list[Record]] = {}
        self._unsynced_bytes = 0
        self._last_sync = time.monotonic()

    @property
    def room(self) -> int:
        """Bytes until the active segment is full."""
        return self.segment_bytes - (self.active or self.roll()).size

    @property
    def has_unsynced(self) -> bool:
        return bool(self._unsynced)

    @property
    def is_sync_due(self) -> bool:
        waited = time.monotonic() - self._last_sync >= SYNC_SECONDS
        return self.has_unsynced and (waited or self._unsynced_bytes >= SYNC_BYTES)

    def append(self, rows: list[Row]) -> None:
        """Write rows that fit the active segment; they are found when this returns."""
        segment = self.active or self.roll()
        buffers: list[Buffer] = []
        records: list[Record] = []
        offset = segment.size
        for header, content in rows:
            entry = entry_bytes(header.length)
            buffers += [header.pack(), content, _PADDING[: entry - HEADER_BYTES - header.length]]
            records.append(record_of(header, offset))
            offset += entry
        self._unsynced_bytes += offset - segment.size
        segment.append_rows(buffers, offset - segment.size)
        if self._durability == "strict":
            segment.sync_rows()
        self._dirty.add(segment)
        self._note(segment, records)
        for record in records:
            self._directory.add(segment, record)

    def forget(self, kind: Kind, key: bytes, place: Place) -> None:
        """Record that a row was deleted, or is damaged."""
        if place.segment.number in self._directory.segments:
            record = Record(kind, key, place.offset, place.length, place.crc, now())
            self._note(place.segment, [record])

    def sync(self) -> None:
        """With "relaxed": rows first, then the records that name them."""
        unsynced, self._unsynced = self._unsynced, {}
        dirty, self._dirty = self._dirty, set()
        self._unsynced_bytes = 0
        self._last_sync = time.monotonic()
        for segment, records in unsynced.items():
            if segment.number in self._directory.segments:
                if segment in dirty:
                    segment.sync_rows()
                self._append_records(segment, records)

    def roll(self) -> Segment:
        """The next segment becomes the active one: an empty one, or the last of an earlier run where it has room."""
        if self.active is not None:
            if self._unsynced:
                self.sync()
            if self._durability != "off":
                self.active.sync_index()
            self.active.seal()
        newest = self._directory.segments.get(max(self._directory.segments, default=0))
        has_room = newest is not None and newest.size < self.segment_bytes // 2
        if newest is None or newest is self.active or not (has_room and (self._may_continue or newest.size == 0)):
            newest = self._directory.new_segment()
            if self._durability != "off":
                self._directory.sync()
        self._may_continue = False
        self.active = newest
        return newest

    def abandon(self) -> None:
        """After an error: leave the active segment, whose end may hold anything."""
        active, self.active = self.active, None
        if active is not None:
            with contextlib.suppress(OSError):
                active.cut()

    def let_go(self, segment: Segment) -> None:
        """Forget a segment that will be removed."""
        self._unsynced.pop(segment, None)
        self._dirty.discard(segment)
        if segment is self.active:
            self.active = None

    def _note(self, segment: Segment, records: list[Record]) -> None:
        if self._durability == "relaxed":
            self._unsynced.setdefault(segment, []).extend(records)
        else:
            self._append_records(segment, records)

    def _append_records(self, segment: Segment, records: list[Record]) -> None:
        segment.append_records(records)
        if segment is not self.active:
            segment.seal()
