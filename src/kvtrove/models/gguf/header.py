"""The header of a GGUF file: key/value metadata and tensor descriptions, by the public format description. No torch.

    | "GGUF" | version u32 | tensors u64 | pairs u64 | pair ... | tensor description ... | padding | tensor data ... |
    pair:   key string, type u32, value          string: length u64, UTF-8 bytes          all little-endian

Only the header is touched, so a file of any size takes milliseconds. Every count is checked against the bytes that are
there before anything of that size is made, and arrays stay arrays of numbers or views of the file: reading a header
never takes more than about the header's own size.
"""

from __future__ import annotations

import mmap
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, overload

from kvtrove.models.gguf.tensor_types import TYPES, GGMLType
from kvtrove.models.spec import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_PAIRS, MOST_TENSORS, MOST_DIMENSIONS = 4096, 65_536, 4
LONGEST_NAME, LONGEST_TEXT = 1024, 1 << 20
"""Bytes of a key or the name of a tensor, and of a text: Python takes up to four times as many for it."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PAIR_BYTES, _TENSOR_BYTES = 13, 33  # of the shortest pair and tensor description
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class Strings(Sequence[str]):
    """An array of strings, decoded when they are asked for."""

    def __init__(self, data: mmap.mmap, starts: array[int], stops: array[int]) -> None:
        self._data, self._starts, self._stops = data, starts, stops

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._data[self._starts[index] : self._stops[index]].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        data = self._data
        for start, stop in zip(self._starts, self._stops, strict=True):
            yield data[start:stop].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape: fastest dimension first, as the file has it. start: its first byte in the part `file`."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    start: int
    file: Path

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.num_elements // self.type.elements * self.type.nbytes


@dataclass(frozen=True)
class GGUFHeader:
    """metadata: numbers, flags, texts, and `array` or `Strings` of many. files: all parts of a split model."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """ModelError when the file does not name it."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise ModelError(f"{self.path}: 'general.architecture' is missing from its metadata")
        return name


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` means: itself (of a split model the first part), or the one model of a directory
    without a config.json. None where there is none; ModelError where a directory holds several models.
    """
    if path.suffix == ".gguf" and not path.is_dir():
        return _first_part(path)
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted({_first_part(file) for file in path.glob("*.gguf")})
    if len(found) > 1:
        raise ModelError(f"{path}: holds {len(found)} GGUF models; give one: {', '.join(f.name for f in found)}")
    return found[0] if found else None


def _first_part(path: Path) -> Path:
    part = _SPLIT.fullmatch(path.name)
    return path.with_name(f"{part[1]}-00001-of-{part[3]}.gguf") if part else path


def read_header(path: Path) -> GGUFHeader:
    """Of one file, or of all files of a split model given its first. ModelError when it is no complete GGUF header."""
    header = _read_one(path)
    count = _split_number(header, "split.count", 1)
    if count < 2:
        return header
    found = _SPLIT.fullmatch(path.name)
    if not found or int(found[3]) != count:
        raise ModelError(f"{path}: is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf")
    parts = [header]
    for number in range(2, count + 1):
        part = _read_one(path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf"))
        if _split_number(part, "split.no", number - 1) != number - 1:
            raise ModelError(f"{part.path}: 'split.no' is {part.metadata['split.no']}, expected {number - 1}")
        parts.append(part)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    _refuse_twice(path, tensors)
    total = _split_number(header, "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(f"{path}: 'split.tensors.count' is {total}, but its parts hold {len(tensors)} tensors")
    return GGUFHeader(path, header.metadata, tensors, tuple(part.path for part in parts))


def _split_number(header: GGUFHeader, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise ModelError(f"{header.path}: {key!r} is {value!r}, expected a whole number")
    return value


def _refuse_twice(path: Path, tensors: Sequence[TensorInfo]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{path}: tensor {tensor.name!r} is described twice")
        seen.add(tensor.name)


def map_file(path: Path) -> mmap.mmap:
    """All of it, read-only. ModelError when there is no such file, or it is no plain one."""
    if path.exists() and not path.is_file():  # opening a pipe would wait forever
        raise ModelError(f"{path}: is not a plain file")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: the file is missing") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from error


def _read_one(path: Path) -> GGUFHeader:
    cursor = _Cursor(map_file(path))
    try:
        metadata, tensors = _parse(cursor, path)
    except _CutOffError:
        raise ModelError(f"{path}: the GGUF header is cut off in {cursor.where}; download the file again") from None
    except ValueError as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from None
    _refuse_twice(path, tensors)
    return GGUFHeader(path, metadata, tensors, (path,))


class _CutOffError(Exception):
    """The header goes on where the file has ended."""


class _Cursor:
    """Reads little-endian values one after the other. where: what is being read, for errors."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.where = data, 0, "its first bytes"

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def scalar(self, code: str) -> Any:
        try:
            (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        except struct.error:
            raise _CutOffError from None
        self.at += struct.calcsize(f"<{code}")
        return value

    def step(self, size: int) -> int:
        """Move `size` bytes on; returns where it was."""
        start = self.at
        if size > self.left:
            raise _CutOffError
        self.at = start + size
        return start

    def string(self, most: int) -> str:
        length = self.scalar("Q")
        start = self.step(length)
        if length > most:
            raise ValueError(f"{self.where} has a text of {length} bytes, longer than {most}")
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string(LONGEST_TEXT)
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"{self.where} has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self) -> Any:
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return self._strings(length)
        if kind not in _SCALARS:
            raise ValueError(f"{self.where} is an array of the unknown type {kind}")
        numbers = array(_SCALARS[kind].replace("?", "B"))
        start = self.step(length * numbers.itemsize)
        numbers.frombytes(self.data[start : self.at])
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def _strings(self, length: int) -> Strings:
        if length * 8 > self.left:
            raise _CutOffError
        starts, stops = array("Q", bytes(8 * length)), array("Q", bytes(8 * length))
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for index in range(length):
            if at + 8 > end:
                raise _CutOffError
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > end:
                raise _CutOffError
            starts[index], stops[index] = start, at
        self.at = at
        return Strings(data, starts, stops)


def _parse(cursor: _Cursor, path: Path) -> tuple[dict[str, Any], tuple[TensorInfo, ...]]:
    if (magic := cursor.data[cursor.step(4) : 4]) != MAGIC:
        raise ValueError(f"it begins with {magic!r}, not with b'GGUF'")
    version = cursor.scalar("I")
    if version & 0xFFFF == 0:
        raise ValueError("it is written for a big-endian machine; convert it for a little-endian one")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not one of {', '.join(map(str, VERSIONS))}")
    num_tensors, num_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    _check_count(cursor, "number of tensors", num_tensors, MOST_TENSORS, _TENSOR_BYTES)
    _check_count(cursor, "number of metadata pairs", num_pairs, MOST_PAIRS, _PAIR_BYTES)
    metadata: dict[str, Any] = {}
    key = ""
    for number in range(num_pairs):
        cursor.where = f"metadata pair {number}, behind {key!r}"
        key = cursor.string(LONGEST_NAME)
        if key in metadata:
            raise ValueError(f"its metadata has {key!r} twice")
        cursor.where = repr(key)
        metadata[key] = cursor.value(cursor.scalar("I"))
    return metadata, tuple(_tensors(cursor, path, num_tensors, _alignment(metadata)))


def _check_count(cursor: _Cursor, what: str, count: int, most: int, least_bytes: int) -> None:
    if count > most or count * least_bytes > cursor.left:
        raise ValueError(f"its {what} is {count}, more than {min(most, cursor.left // least_bytes)}, which can be here")


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or value < 8 or value & (value - 1):
        raise ValueError(f"'general.alignment' is {value!r}, expected a power of two of at least 8")
    return value


def _tensors(cursor: _Cursor, path: Path, count: int, alignment: int) -> list[TensorInfo]:
    described = []
    name = ""
    for number in range(count):
        cursor.where = f"the description of tensor {number}, behind {name!r}"
        name = cursor.string(LONGEST_NAME)
        cursor.where = f"the description of tensor {name!r}"
        described.append((name, *_description(cursor, name)))
    data = -(-cursor.at // alignment) * alignment
    for name, *_, offset in described:
        if offset % alignment:
            raise ValueError(f"tensor {name!r} begins at {offset}, which is no multiple of {alignment}")
    return [TensorInfo(name, shape, kind, data + offset, path) for name, shape, kind, offset in described]


def _description(cursor: _Cursor, name: str) -> tuple[tuple[int, ...], GGMLType, int]:
    dimensions = cursor.scalar("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions, expected 1 to {MOST_DIMENSIONS}")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in TYPES:
        raise ValueError(f"tensor {name!r} has the unknown ggml type {kind}")
    if min(shape) < 1 or prod(shape) >= 1 << 63:
        raise ValueError(f"tensor {name!r} has the impossible shape {list(shape)}")
    if shape[0] % TYPES[kind].elements:
        block = f"blocks of {TYPES[kind].elements} ({TYPES[kind].name})"
        raise ValueError(f"tensor {name!r} has rows of {shape[0]}, which {block} do not fill")
    return shape, TYPES[kind], offset
