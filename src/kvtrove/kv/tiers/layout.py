"""The bytes of a tier's directory. Fixed headers with a checksum each; nothing else is ever interpreted.

    DIR/kvtrove.tier     magic, version: this is a tier
    DIR/lock             held by the process that writes
    DIR/00000001.rows    | header 128 | row | padding | header | row | padding | ...     entries begin every 4 KiB
    DIR/00000001.index   | record 64 | record | ...                                     what of it counts, in order

All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from kvtrove.kernels import crc32c

VERSION = 1
ALIGN = 4096
MARKER_FILE = "kvtrove.tier"
LOCK_FILE = "lock"

_MARKER = struct.Struct("<8sII")  # magic, version, crc of the bytes before
_MARKER_MAGIC = b"KVTtier\x00"

_HEADER = struct.Struct("<8sHHI32s32s32sQII")  # magic, version, flags, length, format, spec, key, written, crc, own crc
_HEADER_MAGIC = b"KVTrow\r\n"
HEADER_BYTES = _HEADER.size

_RECORD = struct.Struct("<4sHHIIQ32sII")  # magic, kind, flags, length, crc of the row, offset, key, written, own crc
_RECORD_MAGIC = b"KVTi"
RECORD_BYTES = _RECORD.size

MOST_ROW_BYTES = 1 << 30
"""A longer row is taken for damage."""


class Kind(IntEnum):
    """What a record of the index says about the entry at its offset."""

    ROW = 1
    DELETED = 2
    QUARANTINED = 3  # the row did not have its checksum when it was read


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes a row. written: seconds since 1970, to show; nothing is decided by it."""

    key: bytes
    length: int
    crc: int
    format_id: bytes
    fingerprint: bytes
    written: int

    def pack(self) -> bytes:
        fields = (0, self.length, self.format_id, self.fingerprint, self.key, self.written, self.crc)
        head = _HEADER.pack(_HEADER_MAGIC, VERSION, *fields, 0)[:-4]
        return head + crc32c(head).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of an index."""

    kind: Kind
    key: bytes
    offset: int
    length: int
    crc: int
    written: int

    def pack(self) -> bytes:
        fields = (self.kind, 0, self.length, self.crc, self.offset, self.key, self.written)
        head = _RECORD.pack(_RECORD_MAGIC, *fields, 0)[:-4]
        return head + crc32c(head).to_bytes(4, "little")


def record_of(header: Header, offset: int) -> Record:
    """The record of an entry."""
    return Record(Kind.ROW, header.key, offset, header.length, header.crc, min(header.written, 0xFFFFFFFF))


def now() -> int:
    """The wall clock for `written`, wherever it has jumped to."""
    return min(max(int(time.time()), 0), 0xFFFFFFFF)


def marker() -> bytes:
    head = _MARKER.pack(_MARKER_MAGIC, VERSION, 0)[:-4]
    return head + crc32c(head).to_bytes(4, "little")


def marker_version(content: bytes) -> int | None:
    """The version of a tier's marker file; None when it is none."""
    if len(content) != _MARKER.size:
        return None
    magic, version, crc = _MARKER.unpack(content)
    return version if magic == _MARKER_MAGIC and crc == crc32c(content[:-4]) else None


def format_field(format_id: str) -> bytes:
    """32 bytes for a format's name; a longer name is represented by its hash."""
    name = format_id.encode()
    return name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()


def entry_bytes(length: int) -> int:
    """Bytes of a row of that length in its file, header and padding included."""
    return -(-(HEADER_BYTES + length) // ALIGN) * ALIGN


def read_header(content: memoryview) -> Header | None:
    """The header at the start of `content`; None when it is none, or damaged."""
    if content.nbytes < HEADER_BYTES:
        return None
    magic, version, _, length, format_id, fingerprint, key, written, crc, own = _HEADER.unpack_from(content)
    if magic != _HEADER_MAGIC or version != VERSION or not 0 < length <= MOST_ROW_BYTES:
        return None
    if own != crc32c(content[: HEADER_BYTES - 4]):
        return None
    return Header(key, length, crc, format_id, fingerprint, written)


def read_records(content: memoryview) -> Iterator[Record]:
    """The records from the start of an index up to the first that is damaged or not complete."""
    known = {kind.value: kind for kind in Kind}
    whole = content[: content.nbytes // RECORD_BYTES * RECORD_BYTES]
    for i, fields in enumerate(_RECORD.iter_unpack(whole)):
        magic, kind, _, length, crc, offset, key, written, own = fields
        start = i * RECORD_BYTES
        if magic != _RECORD_MAGIC or own != crc32c(whole[start : start + RECORD_BYTES - 4]):
            return
        if kind not in known or offset % ALIGN or not 0 < length <= MOST_ROW_BYTES:
            return
        yield Record(known[kind], key, offset, length, crc, written)
