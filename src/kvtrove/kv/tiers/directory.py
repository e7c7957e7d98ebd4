"""Directory: the segments of a tier and the dictionary of what they hold, built once when it is opened.

key ──> Place(segment, offset, length)        the dictionary is in memory, so that a lookup never waits for the disk
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable

from kvtrove.config import ConfigError
from kvtrove.kv.evicted import EvictedKeys
from kvtrove.kv.tiers.files import Files
from kvtrove.kv.tiers.layout import (
    LOCK_FILE,
    MARKER_FILE,
    VERSION,
    Kind,
    Record,
    entry_bytes,
    marker,
    marker_version,
)
from kvtrove.kv.tiers.segment import ROWS, Place, Segment


class Directory:
    """A tier's directory, opened by its one writer or by a reader.

    entries: key -> where its row is. touched: keys that were read since they were written. evicted: those that left to
    make room. Its methods may be called by
    any thread. ConfigError for a directory that is none of a tier, or that cannot be made.
    """

    def __init__(self, path: str, *, write: bool, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.files = files
        self.entries: dict[bytes, Place] = {}
        self.touched: set[bytes] = set()
        self.segments: dict[int, Segment] = {}  # by number, oldest first
        self._newest = 0  # number that a segment has or had, readable or not
        self.notices: list[str] = []
        self.evicted = EvictedKeys(clock=clock)
        self._lock = threading.RLock()
        self._refreshing = threading.Lock()
        self._held = self._take(write)
        self.is_writer = self._held is not None
        self._identity = files.identity(self._file(MARKER_FILE))
        for number in self._numbers():
            self._load(number)

    # ---- what is there ----

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(segment.nbytes for segment in list(self.segments.values()))

    def is_gone(self) -> bool:
        """Whether the directory is not there any more, or another one has its name."""
        try:
            return self.files.identity(self._file(MARKER_FILE)) != self._identity
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR)

    # ---- changes of the dictionary ----

    def add(self, segment: Segment, record: Record) -> None:
        """The row of the record can be found from now on; an older one under its key cannot."""
        with self._lock:
            self._unlink(record.key)
            self.entries[record.key] = Place(segment, record.offset, record.length, record.crc)
            segment.live += entry_bytes(record.length)

    def drop(self, key: bytes, place: Place | None = None) -> Place | None:
        """Forget a key; with `place`, only while it still lies there. The place where it was, or None."""
        with self._lock:
            found = self.entries.get(key)
            if found is None or (place is not None and found != place):
                return None
            self._unlink(key)
            return found

    def rows_of(self, segment: Segment) -> list[tuple[bytes, Place]]:
        """What can be found in the segment, in the order of its file."""
        with self._lock:
            rows = [(key, place) for key, place in self.entries.items() if place.segment is segment]
        return sorted(rows, key=lambda row: row[1].offset)

    def new_segment(self) -> Segment:
        number = self._newest + 1
        segment = Segment(self.files, self.path, number)
        segment.create()
        self._newest = number
        self.segments[number] = segment
        return segment

    def remove(self, segment: Segment) -> int:
        """Delete a segment; how many rows were still found in it. OSError when it cannot be: they still are."""
        segment.remove()
        return self._evict(segment)

    def forget_all(self) -> None:
        """Nothing is found any more; no file is touched but closed."""
        with self._lock:
            self.entries.clear()
            self.touched.clear()
            segments, self.segments = list(self.segments.values()), {}
        for segment in segments:
            segment.close()

    def refresh(self) -> None:
        """See what the writer has done since: new rows, new segments, segments that are gone. OSError when it fails."""
        if not self._refreshing.acquire(blocking=False):
            return  # another thread does, on a slow disk
        try:
            self._look_again()
        finally:
            self._refreshing.release()

    def _look_again(self) -> None:
        numbers = set(self._numbers())
        for number in sorted(set(self.segments) - numbers):
            segment = self.segments[number]
            self._evict(segment)
            segment.close()
        for number in sorted(numbers):
            if number in self.segments:
                self._replay(self.segments[number], self.segments[number].more())
            else:
                self._load(number)

    def sync(self) -> None:
        self.files.sync_directory(self.path)

    def close(self) -> None:
        self.forget_all()
        if self._held is not None:
            self.files.close(self._held)
            self._held = None

    # ---- opening ----

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _numbers(self) -> list[int]:
        names = self.files.names(self.path)
        return sorted(int(name[: -len(ROWS)]) for name in names if name.endswith(ROWS) and name[: -len(ROWS)].isdigit())

    def _take(self, write: bool) -> int | None:
        """Check or make the directory. The handle of its lock; None for one to read."""
        try:
            if write:
                self.files.make_directory(self.path)
            names = [name for name in self.files.names(self.path) if name != LOCK_FILE]
        except OSError as error:
            raise ConfigError(
                f"tier disk: {self.path} cannot be used as a directory ({error.strerror}); give one that can be written"
            ) from error
        if MARKER_FILE not in names:
            if names:
                raise ConfigError(f"tier disk: {self.path} holds other files; give an empty or a new directory")
            if not write:
                raise ConfigError(f"tier disk: {self.path} is empty: no tier was written there yet")
        try:
            held = self.files.lock(self._file(LOCK_FILE)) if write else None
            is_new = not any(name.endswith(ROWS) for name in names)  # or its making was interrupted
            if held is not None and is_new:
                self._mark()
            self._check_version()
        except OSError as error:
            if MARKER_FILE not in names:
                raise ConfigError(f"tier disk: {self.path} cannot be written ({error.strerror})") from error
            self.notices.append(f"tier disk: {self.path} is read-only ({error.strerror}): nothing is added to it")
            return None
        if write and held is None:
            self.notices.append(f"tier disk: another engine writes to {self.path}: this one reads from it")
        return held

    def _mark(self) -> None:
        handle = self.files.open(self._file(MARKER_FILE), write=True)
        try:
            self.files.write(handle, 0, [marker()])
            self.files.sync(handle)
        finally:
            self.files.close(handle)
        self.sync()

    def _check_version(self) -> None:
        handle = self.files.open(self._file(MARKER_FILE))
        try:
            content = memoryview(bytearray(len(marker())))
            content = content[: self.files.read(handle, 0, content)]
        finally:
            self.files.close(handle)
        version = marker_version(content.tobytes())
        if version != VERSION:
            what = "is damaged" if version is None else f"has format {version}, this version reads {VERSION}"
            raise ConfigError(f"tier disk: {self._file(MARKER_FILE)} {what}; give a new directory, or delete this one")

    def _load(self, number: int) -> None:
        segment = Segment(self.files, self.path, number)
        self._newest = max(self._newest, number)
        try:
            records = segment.load(repair=self.is_writer)
        except OSError as error:
            segment.close()
            told = f"tier disk: segment {number} of {self.path} cannot be read ({error.strerror})"
            if told not in self.notices and (self.is_writer or error.errno != errno.ENOENT):
                self.notices.append(told)
            return
        self.segments[number] = segment
        self._replay(segment, records)
        segment.seal()

    def _replay(self, segment: Segment, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind is Kind.ROW:
                self.add(segment, record)
            else:
                place = self.entries.get(record.key)
                if place is not None and place.segment is segment and place.offset == record.offset:
                    self.drop(record.key)

    def _evict(self, segment: Segment) -> int:
        with self._lock:
            lost = self.rows_of(segment)
            for key, _ in lost:
                self._unlink(key)
                self.evicted.add(key)
            self.segments.pop(segment.number, None)
        return len(lost)

    def _unlink(self, key: bytes) -> None:
        place = self.entries.pop(key, None)
        self.touched.discard(key)
        if place is not None:
            place.segment.live -= entry_bytes(place.length)
