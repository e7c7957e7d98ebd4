"""A checkpoint written again with some of its tensors changed: file by file, tensor by tensor.

    | length | header, with new shapes and offsets | tensor as it was | changed tensor | tensor as it was | ...

Tensors that stay are copied as bytes, whatever their type, so memory holds one changed tensor at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from kvtrove.models.config_view import read_json
from kvtrove.models.safetensors_files import SafetensorsCheckpoint
from kvtrove.models.shards import INDEX, safetensors_header
from kvtrove.models.spec import ModelError

COPIED_AT_ONCE = 1 << 22
ABOUT = "__metadata__"


@dataclass(frozen=True)
class Change:
    """shape: of the tensor as it will be, in the dtype that it is stored in. make: gives it."""

    shape: tuple[int, ...]
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class _Entry:
    """A tensor in its file. begin, end: bytes behind the old header. nbytes: that it will take."""

    name: str
    begin: int
    end: int
    nbytes: int


@dataclass(frozen=True)
class _File:
    """One file. header: the new one, encoded."""

    source: Path
    entries: tuple[_Entry, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        return 8 + len(self.header) + sum(entry.nbytes for entry in self.entries)


class Rewrite:
    """The files of `checkpoint` as they will be. Raises ModelError naming a file that is damaged."""

    def __init__(self, checkpoint: SafetensorsCheckpoint, changes: Mapping[str, Change]) -> None:
        self.listing, self.changes = checkpoint.listing, changes
        self._removed = 0  # elements
        self._files = []
        for path in checkpoint.files:
            checkpoint.handle(path)  # which checks the whole header
            self._files.append(self._planned(path))

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(file.nbytes for file in self._files)

    @property
    def num_tensors(self) -> int:
        return sum(len(file.entries) for file in self._files)

    def write(self, folder: Path) -> Iterator[str]:
        """Writes the files under their own names, and gives the name of each tensor once it is written.

        OSError when the disk is full.
        """
        for file in self._files:
            with file.source.open("rb") as source, (folder / file.source.name).open("xb") as out:
                length = int.from_bytes(source.read(8), "little")
                out.write(len(file.header).to_bytes(8, "little") + file.header)
                for entry in file.entries:
                    if entry.name in self.changes:
                        _write_tensor(out, self.changes[entry.name], entry)
                    else:
                        source.seek(8 + length + entry.begin)
                        _copy(source, out, entry.nbytes, file.source)
                    yield entry.name
                out.flush()
                os.fsync(out.fileno())
        if self.listing.name == INDEX:
            (folder / INDEX).write_text(json.dumps(self._index(), indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _planned(self, path: Path) -> _File:
        old = safetensors_header(path)
        header: dict[str, Any] = {ABOUT: old[ABOUT]} if ABOUT in old else {}
        entries, at = [], 0
        named = ((name, about) for name, about in old.items() if name != ABOUT)
        for name, about in sorted(named, key=lambda item: item[1]["data_offsets"]):
            begin, end = about["data_offsets"]
            shape, nbytes = about["shape"], end - begin
            if (change := self.changes.get(name)) is not None:
                self._removed += prod(shape) - prod(change.shape)
                shape, nbytes = list(change.shape), nbytes // prod(shape) * prod(change.shape)
            entries.append(_Entry(name, begin, end, nbytes))
            header[name] = {"dtype": about["dtype"], "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        return _File(path, tuple(entries), text + b" " * (-len(text) % 8))

    def _index(self) -> dict[str, Any]:
        """Tensors stay in their files; only what they take is another."""
        index = read_json(self.listing)
        about = dict(index.get("metadata") or {})
        about["total_size"] = sum(entry.nbytes for file in self._files for entry in file.entries)
        if isinstance(about.get("total_parameters"), int):
            about["total_parameters"] -= self._removed
        return {**index, "metadata": about}


def _write_tensor(out: BinaryIO, change: Change, entry: _Entry) -> None:
    tensor = change.make().contiguous()
    assert tuple(tensor.shape) == change.shape, f"{entry.name} came as {list(tensor.shape)}"
    assert tensor.nbytes == entry.nbytes, f"{entry.name} came in {tensor.dtype}"
    out.write(tensor.view(torch.uint8).numpy().data)


def _copy(source: BinaryIO, out: BinaryIO, nbytes: int, path: Path) -> None:
    while nbytes:
        piece = source.read(min(nbytes, COPIED_AT_ONCE))
        if not piece:
            raise ModelError(f"{path}: not a complete safetensors file; download it again")
        out.write(piece)
        nbytes -= len(piece)
