"""What lies in a disk tier's directory, for people: list, verify, clear, export, import. No engine is needed.

export file: | marker 16, padded to 4096 | entries as in a segment |      so an import verifies what it takes over
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvtrove.config import ConfigError
from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.directory import Directory
from kvtrove.kv.tiers.disk import DiskSettings
from kvtrove.kv.tiers.disk_log import DiskLog, Row
from kvtrove.kv.tiers.files import Files
from kvtrove.kv.tiers.layout import (
    ALIGN,
    HEADER_BYTES,
    RECORD_BYTES,
    VERSION,
    Header,
    Kind,
    entry_bytes,
    marker,
    marker_version,
    read_header,
)
from kvtrove.kv.tiers.segment import Place

IMPORT_BYTES = 32 << 20  # appended at once


@dataclass(frozen=True, slots=True)
class Family:
    """Rows of one format and one kind of model. spec: the first 12 hex digits of the spec's fingerprint."""

    format: str
    spec: str


@dataclass
class Summary:
    """rows, nbytes: of one family. oldest, newest: seconds since 1970."""

    rows: int = 0
    nbytes: int = 0
    oldest: int = 0
    newest: int = 0

    def add(self, header: Header) -> None:
        self.oldest = min(self.oldest, header.written) if self.rows else header.written
        self.newest = max(self.newest, header.written)
        self.rows += 1
        self.nbytes += header.length


@dataclass
class Contents:
    """A directory as it is. damaged: rows whose header cannot be read."""

    path: str
    nbytes: int = 0
    segments: int = 0
    damaged: int = 0
    families: dict[Family, Summary] = field(default_factory=dict)


@dataclass
class Verified:
    rows: int = 0
    nbytes: int = 0
    damaged: int = 0


@dataclass
class Moved:
    """rows, nbytes: moved. known: were there already. damaged: left out. no_room: did not fit the size."""

    rows: int = 0
    nbytes: int = 0
    known: int = 0
    damaged: int = 0
    no_room: int = 0


def contents(path: str) -> Contents:
    """Count what is there, by family. ConfigError when it is no tier's directory, here and below."""
    directory = Directory(path, write=False, files=Files())
    found = Contents(directory.path, directory.nbytes, len(directory.segments))
    buffer = memoryview(bytearray(HEADER_BYTES))
    for key, place in _in_order(directory):
        header = _header(key, place, buffer)
        if header is None:
            found.damaged += 1
            continue
        name = header.format_id.rstrip(b"\0")
        family = Family(name.decode() if name.isascii() else name.hex()[:12], header.fingerprint.hex()[:12])
        found.families.setdefault(family, Summary()).add(header)
    directory.close()
    return found


def verify(path: str, *, repair: bool = False) -> Verified:
    """Read every row and compare its checksum. repair: damaged ones are never found again; no engine may write then."""
    directory = _to_write(path) if repair else Directory(path, write=False, files=Files())
    log = _log(directory)
    result = Verified()
    for key, place, entry in _entries(directory):
        if entry is not None:
            result.rows += 1
            result.nbytes += place.length
            continue
        result.damaged += 1
        if repair and directory.drop(key, place):
            log.forget(Kind.QUARANTINED, key, place)
    log.sync()
    directory.close()
    return result


def clear(path: str) -> int:
    """Delete all rows; how many there were. No engine may write then."""
    directory = _to_write(path)
    rows = len(directory.entries)
    for segment in list(directory.segments.values()):
        directory.remove(segment)
    directory.sync()
    directory.close()
    return rows


def export(path: str, file: Path) -> Moved:
    """Write every undamaged row to a new file. ConfigError when the file is there already, or cannot be written."""
    directory = Directory(path, write=False, files=Files())
    moved = Moved()
    try:
        with file.open("xb") as out:
            out.write(marker().ljust(ALIGN, b"\0"))
            for _, place, entry in _entries(directory):
                if entry is None:
                    moved.damaged += 1
                    continue
                out.write(entry)
                out.write(bytes(entry_bytes(place.length) - entry.nbytes))
                moved.rows += 1
                moved.nbytes += place.length
    except FileExistsError as error:
        raise ConfigError(f"cache export: {file} is there already; give a new file") from error
    except OSError as error:
        raise ConfigError(f"cache export: {file} cannot be written ({error.strerror})") from error
    finally:
        directory.close()
    return moved


def import_(path: str, file: Path, size: int) -> Moved:
    """Take over the undamaged rows of an exported file, as far as the directory stays within `size` bytes."""
    directory = _to_write(path, create=True)
    log = _log(directory, size)
    moved = Moved()
    rows: list[Row] = []
    waiting = 0
    try:
        with file.open("rb") as source:
            if marker_version(source.read(ALIGN)[: len(marker())]) != VERSION:
                raise ConfigError(f"cache import: {file} was not written by kvtrove cache export")
            for header, row in _exported(source, moved):
                cost = entry_bytes(header.length) + RECORD_BYTES
                if header.key in directory.entries:
                    moved.known += 1
                elif directory.nbytes + waiting + cost > size:
                    moved.no_room += 1
                else:
                    rows.append((header, row))
                    waiting += cost
                    moved.rows += 1
                    moved.nbytes += header.length
                if waiting >= min(IMPORT_BYTES, log.room):
                    log.append(rows)
                    rows, waiting = [], 0
                    if log.room < log.segment_bytes // 2:
                        log.roll()
        if rows:
            log.append(rows)
        log.sync()
    except OSError as error:
        raise ConfigError(f"cache import: {file} cannot be taken over ({error.strerror})") from error
    finally:
        directory.close()
    return moved


# ---- the parts ----


def _to_write(path: str, *, create: bool = False) -> Directory:
    if not create:
        Directory(path, write=False, files=Files()).close()  # never makes one where there was none
    directory = Directory(path, write=True, files=Files())
    if not directory.is_writer:
        directory.close()
        raise ConfigError(f"cache: {'; '.join(directory.notices)}; stop the engine first")
    return directory


def _log(directory: Directory, size: int = 1 << 40) -> DiskLog:
    return DiskLog(directory, "relaxed", DiskSettings(directory.path, size).segment_bytes)


def _in_order(directory: Directory) -> list[tuple[bytes, Place]]:
    return sorted(directory.entries.items(), key=lambda item: (item[1].segment.number, item[1].offset))


def _header(key: bytes, place: Place, buffer: memoryview) -> Header | None:
    try:
        count = place.segment.read(place.offset, buffer)
    except OSError:
        return None
    header = read_header(buffer[:count])
    return header if header is not None and header.key == key else None


def _entries(directory: Directory) -> Iterator[tuple[bytes, Place, memoryview | None]]:
    """Every row in the order of the disk, with header and content; None for a damaged one."""
    for key, place in _in_order(directory):
        entry = memoryview(bytearray(HEADER_BYTES + place.length))
        header = _header(key, place, entry)
        whole = header is not None and header.length == place.length
        yield key, place, entry if whole and header and crc32c(entry[HEADER_BYTES:]) == header.crc else None


def _exported(source: object, moved: Moved) -> Iterator[tuple[Header, bytes]]:
    """The rows of an exported file; what follows a broken header cannot be found."""
    read = source.read  # type: ignore[attr-defined]
    while head := read(HEADER_BYTES):
        header = read_header(memoryview(head))
        if header is None:
            moved.damaged += 1
            return
        row = read(header.length)
        read(entry_bytes(header.length) - HEADER_BYTES - header.length)
        if crc32c(row) == header.crc:
            yield header, row
        else:
            moved.damaged += 1
