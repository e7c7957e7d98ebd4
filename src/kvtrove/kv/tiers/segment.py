"""Segment: one file of rows and its index. Appended by one writer, read by any number of threads and processes."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.files import Buffer, Files
from kvtrove.kv.tiers.layout import (
    ALIGN,
    HEADER_BYTES,
    RECORD_BYTES,
    Record,
    entry_bytes,
    read_header,
    read_records,
    record_of,
)

ROWS, INDEX = ".rows", ".index"
SCAN_BYTES = 4 << 20  # read at once when rows without a record are looked for


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row lies. crc: of the row, from the index, so that a reader can compare it with the header's."""

    segment: Segment
    offset: int
    length: int
    crc: int

    @property
    def stop(self) -> int:
        return self.offset + entry_bytes(self.length)


class Segment:
    """DIR/number.rows and DIR/number.index.

    size, index_size: bytes of each that are good; writes go there. live: entry bytes of rows that can still be found.
    """

    def __init__(self, files: Files, directory: str, number: int) -> None:
        self.number = number
        self.size = 0
        self.index_size = 0
        self.live = 0
        self._files = files
        self._path = f"{directory}/{number:08d}"
        self._rows: int | None = None
        self._index: int | None = None
        self._readers = 0
        self._is_doomed = False
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of both files."""
        return self.size + self.index_size

    # ---- writing ----

    def create(self) -> None:
        """Open for writing; both files exist afterwards."""
        self._rows = self._files.open(self._path + ROWS, write=True)
        self._index = self._files.open(self._path + INDEX, write=True)

    def append_rows(self, buffers: Sequence[Buffer], nbytes: int) -> None:
        """Entries, at `size`; after an error the file is as it was before, as far as readers are concerned."""
        assert self._rows is not None
        self._files.write(self._rows, self.size, buffers)
        self.size += nbytes

    def cut(self) -> None:
        """Remove what an interrupted write has left behind the good bytes."""
        if self._rows is not None:
            self._files.cut(self._rows, self.size)

    def append_records(self, records: Sequence[Record]) -> None:
        if self._index is None:
            self._index = self._files.open(self._path + INDEX, write=True)
        content = b"".join(record.pack() for record in records)
        self._files.write(self._index, self.index_size, [content])
        self.index_size += len(content)

    def sync_rows(self) -> None:
        assert self._rows is not None
        self._files.sync(self._rows)

    def sync_index(self) -> None:
        if self._index is not None:
            self._files.sync(self._index)

    def seal(self) -> None:
        """No rows follow. The index is opened again when a row is deleted."""
        if self._index is not None:
            self._files.close(self._index)
        self._index = None

    def remove(self) -> None:
        """Delete both files, the rows first: an index alone brings nothing back, rows alone would."""
        for suffix in (ROWS, INDEX):
            with contextlib.suppress(FileNotFoundError):
                self._files.remove(self._path + suffix)
        self.close()

    def close(self) -> None:
        """Close the files, now or when the last reader has left."""
        with self._lock:
            self._is_doomed = True
            if self._readers == 0:
                self._release()

    # ---- reading ----

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """The handle of the rows, which stays open meanwhile. OSError when the file cannot be opened or is gone."""
        with self._lock:
            if self._is_doomed:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path + ROWS)
            if self._rows is None:
                self._rows = self._files.open(self._path + ROWS)
            handle = self._rows
            self._readers += 1
        try:
            yield handle
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._is_doomed and self._readers == 0:
                self._release()

    def read(self, offset: int, into: memoryview) -> int:
        with self.reading() as handle:
            return self._files.read(handle, offset, into)

    def load(self, *, repair: bool) -> list[Record]:
        """All records that count, after the index those that a scan of the rows behind it finds.

        repair: this process writes. What is torn is cut off, and what was found is added to the index.
        """
        if repair:
            self.create()
        records = self._indexed(repair)
        end = self._end()
        known = [record for record in records if record.offset + entry_bytes(record.length) <= end]
        if len(known) < len(records) and repair:
            known, self.index_size = records[: _first_beyond(records, end)], 0
            self._rewrite(known)
        self.size = max((r.offset + entry_bytes(r.length) for r in known), default=0)
        if not repair:
            return known
        found = list(self._scan(end))
        if found:
            self.append_records(found)
            self.size = max(r.offset + entry_bytes(r.length) for r in found)
        if self.size < end:
            self.cut()
        return known + found

    def _end(self) -> int:
        with self.reading() as handle:
            return self._files.size(handle)

    def more(self) -> list[Record]:
        """Records that another process has appended since the last call."""
        records = self._indexed(repair=False)
        self.size = max([self.size, *(r.offset + entry_bytes(r.length) for r in records)])
        return records

    def _indexed(self, repair: bool) -> list[Record]:
        """Records from `index_size` on, which moves behind them."""
        index = self._index if self._index is not None else self._files.open(self._path + INDEX)
        try:
            content = memoryview(bytearray(max(0, self._files.size(index) - self.index_size)))
            count = self._files.read(index, self.index_size, content)
            records = list(read_records(content[:count]))
            self.index_size += len(records) * RECORD_BYTES
            if repair and content.nbytes > len(records) * RECORD_BYTES:
                self._files.cut(index, self.index_size)
        finally:
            if self._index is None:
                self._files.close(index)
        return records

    def _rewrite(self, records: list[Record]) -> None:
        assert self._index is not None
        self._files.cut(self._index, 0)
        if records:
            self.append_records(records)

    def _scan(self, end: int) -> Iterator[Record]:
        """Whole, undamaged entries from `size` on, up to the first that is not."""
        offset = self.size
        while offset + ALIGN <= end:
            content = memoryview(bytearray(min(end - offset, SCAN_BYTES)))
            content = content[: self.read(offset, content)]
            header = read_header(content)
            if header is None or offset + entry_bytes(header.length) > end:
                return
            if entry_bytes(header.length) > content.nbytes:
                content = memoryview(bytearray(entry_bytes(header.length)))
                content = content[: self.read(offset, content)]
            at = 0
            while header is not None and at + entry_bytes(header.length) <= content.nbytes:
                if crc32c(content[at + HEADER_BYTES : at + HEADER_BYTES + header.length]) != header.crc:
                    return
                yield record_of(header, offset + at)
                at += entry_bytes(header.length)
                header = read_header(content[at:])
            offset += at

    def _release(self) -> None:
        for handle in (self._rows, self._index):
            if handle is not None:
                self._files.close(handle)
        self._rows = self._index = None


def _first_beyond(records: list[Record], end: int) -> int:
    """How many records come before the first whose entry is not whole."""
    return next((i for i, r in enumerate(records) if r.offset + entry_bytes(r.length) > end), len(records))
