"""Checkpoint: a whole sequence in one file, which continues elsewhere or after kill -9.

A safetensors file that any reader of that format opens:

    | length 8 | JSON header: __metadata__ {manifest} and the tensors | tokens | rows | tail | seat |

    tokens   int32  [T]                 every token of the sequence, computed or not
    rows     uint8  [R, row_bytes]      its sealed rows, in the order of manifest.keys
    tail     uint8  [G, row_bytes]      one row per group: the open block's
    seat     uint8  [seat_bytes]        what a running sequence keeps beside its blocks

The manifest is JSON in `__metadata__`, with a CRC-32C of each tensor and of itself. Reading trusts nothing: sizes,
types, ranges and checksums are checked first, and no header makes it allocate more than the file holds.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.kernels import crc32c

VERSION = 1
FORMAT = "kvtrove checkpoint"
MOST_HEADER_BYTES = 64 << 20
KEY_HEX = 64
_TENSORS = ("tokens", "rows", "tail", "seat")
_DTYPES = {"tokens": "I32", "rows": "U8", "tail": "U8", "seat": "U8"}


class CheckpointError(ValueError):
    """The file is no checkpoint, is damaged, or is of another model; the message says which."""


@dataclass(frozen=True)
class Unfinished:
    """The request that a sequence belongs to, so that the same one may continue it.

    asked: 32 bytes that stand for everything that was asked. num_prompt: tokens of the prompt; the others were drawn.
    seed: 64 bits, of its draws. logprob: sum of log p of the drawn tokens.
    """

    asked: bytes
    num_prompt: int
    seed: int
    logprob: float


@dataclass(frozen=True)
class Checkpoint:
    """One sequence.

    format_id, fingerprint: of the rows (32 bytes); the reader must have the same. chain_root: 32 bytes that its keys
    descend from (model, format, tenant). tokens: all, int32; the first num_computed are in the cache. keys[i]: (group,
    key) of rows[i]. row_bytes: of each of them. tail: the open block of each group, or none when nothing is open.
    seat: running states and dense tails, empty where there are none; of an archive, the bases of its rows. unfinished:
    None of a sequence that has ended. error: of an archive's keys and values, relative to the exact ones.
    Rows may be left out where a tier keeps them: whoever restores it then finds them there, or computes them again.
    """

    format_id: str
    fingerprint: bytes
    chain_root: bytes
    block_size: int
    row_bytes: int
    tokens: array[int]
    num_computed: int
    keys: Sequence[tuple[int, bytes]]
    rows: Sequence[bytes | bytearray | memoryview]
    tail: Sequence[bytes | bytearray | memoryview] = ()
    seat: bytes | bytearray | memoryview = b""
    unfinished: Unfinished | None = None
    error: float = 0.0


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> int:
    """Write all or nothing: under another name first, synced, then renamed. Returns the file's bytes. OSError."""
    if problem := _problem(checkpoint):
        raise CheckpointError(f"{path}: {problem}")
    tokens = memoryview(checkpoint.tokens).cast("B")
    parts = {"tokens": [tokens], "rows": checkpoint.rows, "tail": checkpoint.tail, "seat": [checkpoint.seat]}
    header = _header(checkpoint, {name: _crc(part) for name, part in parts.items()})
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for name in _TENSORS:
                for piece in parts[name]:
                    out.write(piece)
            out.flush()
            os.fsync(out.fileno())
            nbytes = out.tell()
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return nbytes


def read_checkpoint(path: Path, *, format_id: str | None = None, fingerprint: bytes | None = None) -> Checkpoint:
    """Read and verify. With format_id and fingerprint, rows of another kind are refused. CheckpointError, OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header, start = _read_header(file, size)
            spans = _spans(header, size - start)
            manifest = _manifest(header)
            content = {}
            for name, (first, last) in spans.items():
                file.seek(start + first)
                content[name] = memoryview(bytearray(last - first))
                if file.readinto(content[name]) != last - first:
                    raise CheckpointError("it ends early")
            checkpoint = _checkpoint(manifest, content)
        except CheckpointError as error:
            raise CheckpointError(f"{path} cannot be restored: {error}") from None
    if format_id is not None and (checkpoint.format_id, checkpoint.fingerprint) != (format_id, fingerprint):
        raise CheckpointError(
            f"{path} cannot be restored: it holds {checkpoint.format_id!r} of another model or cache format than this "
            f"engine's {format_id!r}; restore it with the model and the cache settings that wrote it"
        )
    return checkpoint


# ---- the parts ----


def _header(checkpoint: Checkpoint, crcs: dict[str, int]) -> bytes:
    shapes = {
        "tokens": [len(checkpoint.tokens)],
        "rows": [len(checkpoint.rows), checkpoint.row_bytes],
        "tail": [len(checkpoint.tail), checkpoint.row_bytes],
        "seat": [len(checkpoint.seat)],
    }
    manifest = {
        "version": VERSION,
        "format_id": checkpoint.format_id,
        "fingerprint": checkpoint.fingerprint.hex(),
        "chain_root": checkpoint.chain_root.hex(),
        "block_size": checkpoint.block_size,
        "row_bytes": checkpoint.row_bytes,
        "num_computed": checkpoint.num_computed,
        "keys": [[group, key.hex()] for group, key in checkpoint.keys],
        "crc32c": crcs,
    }
    if (open_ := checkpoint.unfinished) is not None:
        manifest["unfinished"] = [open_.asked.hex(), open_.num_prompt, f"{open_.seed:064x}", open_.logprob]
    if checkpoint.error:
        manifest["error"] = checkpoint.error
    told = json.dumps(manifest)
    metadata = {"format": FORMAT, "manifest": told, "manifest_crc32c": f"{crc32c(told.encode()):08x}"}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name in _TENSORS:
        nbytes = 4 * shapes[name][0] if name == "tokens" else _product(shapes[name])
        header[name] = {"dtype": _DTYPES[name], "shape": shapes[name], "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def _read_header(file: Any, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
        raise CheckpointError("it is no safetensors file")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise CheckpointError("its header is damaged") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is damaged")
    return header, 8 + length


def _spans(header: dict[str, Any], nbytes: int) -> dict[str, tuple[int, int]]:
    """Where each tensor lies; together they fill the file, in order."""
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for name in _TENSORS:
        entry = header.get(name)
        if not isinstance(entry, dict) or entry.get("dtype") != _DTYPES[name]:
            raise CheckpointError(f"tensor {name} is missing or of another type")
        shape: Any = entry.get("shape")
        offsets: Any = entry.get("data_offsets")
        if not _whole_numbers(shape, 1 if name in ("tokens", "seat") else 2) or not _whole_numbers(offsets, 2):
            raise CheckpointError(f"tensor {name} has no shape")
        if offsets != [at, at + _product(shape) * (4 if name == "tokens" else 1)] or offsets[1] > nbytes:
            raise CheckpointError(f"tensor {name} is not where it should be")
        spans[name] = at, offsets[1]
        at = offsets[1]
    if at != nbytes:
        raise CheckpointError("it is longer or shorter than its header says")
    return spans


def _manifest(header: dict[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError("it was not written as a checkpoint")
    told = _text(metadata.get("manifest"))
    if metadata.get("manifest_crc32c") != f"{crc32c(told.encode(errors='replace')):08x}":
        raise CheckpointError("its manifest does not have its checksum")
    try:
        manifest = json.loads(told)
    except (ValueError, RecursionError):
        raise CheckpointError("its manifest is damaged") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise CheckpointError(f"its manifest is damaged, or not of version {VERSION}")
    return manifest


def _checkpoint(manifest: dict[str, Any], content: dict[str, memoryview]) -> Checkpoint:
    crcs = manifest.get("crc32c")
    for name in _TENSORS:
        if not isinstance(crcs, dict) or crcs.get(name) != crc32c(content[name]):
            raise CheckpointError(f"{name} do not have their checksum")
    numbers: list[Any] = [manifest.get(name) for name in ("block_size", "row_bytes", "num_computed")]
    if not _whole_numbers(numbers, 3):
        raise CheckpointError("its manifest is damaged")
    block_size, row_bytes, num_computed = numbers
    tokens = array("i")
    tokens.frombytes(content["tokens"])
    checkpoint = Checkpoint(
        _text(manifest.get("format_id")),
        _hex(manifest.get("fingerprint")),
        _hex(manifest.get("chain_root")),
        block_size,
        row_bytes,
        tokens,
        num_computed,
        _keys(manifest.get("keys")),
        _cut(content["rows"], row_bytes),
        _cut(content["tail"], row_bytes),
        content["seat"],
        _unfinished(manifest.get("unfinished"), len(tokens)),
        _error(manifest.get("error", 0.0)),
    )
    if problem := _problem(checkpoint):
        raise CheckpointError(problem)
    return checkpoint


def _problem(checkpoint: Checkpoint) -> str | None:
    """What does not fit together, in words."""
    lengths = {len(row) for row in (*checkpoint.rows, *checkpoint.tail)}
    if checkpoint.block_size < 1 or checkpoint.row_bytes < 1 or lengths - {checkpoint.row_bytes}:
        return "its rows are not of one size"
    if len(checkpoint.keys) != len(checkpoint.rows):
        return f"it has {len(checkpoint.rows)} rows and {len(checkpoint.keys)} keys"
    if len(checkpoint.fingerprint) != 32 or len(checkpoint.chain_root) != 32:
        return "its fingerprint or its root is not of 32 bytes"
    if any(len(key) != 32 or group < 0 for group, key in checkpoint.keys):
        return "one of its keys is not of 32 bytes"
    if not 0 <= checkpoint.num_computed <= len(checkpoint.tokens) or min(checkpoint.tokens, default=0) < 0:
        return "its tokens are not those that were computed"
    if checkpoint.tokens.itemsize != 4:
        return "its tokens are not 32-bit integers"
    return None


def _unfinished(value: Any, num_tokens: int) -> Unfinished | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not _whole_numbers(value[1:2], 1) or value[1] > num_tokens:
        raise CheckpointError("its manifest is damaged")
    if not isinstance(value[3], float) or not value[1]:
        raise CheckpointError("its manifest is damaged")
    return Unfinished(_hex(value[0]), value[1], int.from_bytes(_hex(value[2]), "big") & (2**64 - 1), value[3])


def _error(value: Any) -> float:
    if not isinstance(value, float) or not 0 <= value < float("inf"):
        raise CheckpointError("its manifest is damaged")
    return value


def _keys(value: Any) -> list[tuple[int, bytes]]:
    if not isinstance(value, list):
        raise CheckpointError("its manifest has no keys")
    keys = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not _whole_numbers(pair[:1], 1):
            raise CheckpointError("one of its keys is damaged")
        keys.append((pair[0], _hex(pair[1])))
    return keys


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) != KEY_HEX:
        raise CheckpointError("its manifest is damaged")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise CheckpointError("its manifest is damaged") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise CheckpointError("its manifest is damaged")
    return value


def _whole_numbers(value: Any, count: int) -> bool:
    is_list = isinstance(value, list) and len(value) == count
    return is_list and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in value)


def _cut(content: memoryview, nbytes: int) -> list[memoryview]:
    if not nbytes or content.nbytes % nbytes:
        raise CheckpointError("its rows are not of one size")
    return [content[at : at + nbytes] for at in range(0, content.nbytes, nbytes)]


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _crc(parts: Sequence[Any]) -> int:
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
