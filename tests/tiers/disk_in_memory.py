"""A disk in memory whose power can be cut at any operation, and that knows what had not reached the medium by then.

MemoryFiles(disk, cut_at=n)    the n-th operation and all after it fail; a write that is cut off happens in part
disk.after_kill()              what another process sees: everything that was written
disk.after_power_cut(random)   what the medium holds: everything that was synced, and some sectors of the rest
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from kvtrove.kv.tiers.files import Buffer, Files

SECTOR = 512


@dataclass(eq=False)
class File:
    """content: as processes see it. synced: as the medium has it for certain."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    is_locked: bool = False


class Disk:
    """One directory. names: as processes see them. synced_names: as the medium has them for certain."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}
        self.synced_names: dict[str, File] = {}

    def after_kill(self) -> Disk:
        disk = Disk()
        disk.names = {name: File(bytearray(file.content), bytearray(file.content)) for name, file in self.names.items()}
        disk.synced_names = dict(disk.names)
        return disk

    def after_power_cut(self, random: Random) -> Disk:
        disk = Disk()
        for name in sorted(self.names.keys() | self.synced_names.keys()):
            now, before = self.names.get(name), self.synced_names.get(name)
            file = now if now is before or random.random() < 0.5 else before
            if file is not None:
                content = _sectors(file, random)
                disk.names[name] = File(content, bytearray(content))
        disk.synced_names = dict(disk.names)
        return disk


def _sectors(file: File, random: Random) -> bytearray:
    """The synced bytes, of each sector that was written since perhaps the newer ones; the size is one of the two."""
    size = random.choice([len(file.synced), len(file.content)])
    old, new = file.synced.ljust(size, b"\0")[:size], file.content.ljust(size, b"\0")[:size]
    for start in range(0, size, SECTOR):
        if random.random() < 0.5:
            old[start : start + SECTOR] = new[start : start + SECTOR]
    return bytearray(old)


class MemoryFiles(Files):
    """The system calls on a `Disk`. cut_at: number of the first operation that fails; None: none does.

    full_at: bytes of all files together from which a write finds the disk full.
    """

    def __init__(self, disk: Disk, cut_at: int | None = None, full_at: int | None = None) -> None:
        self.disk = disk
        self.operations = 0
        self.cut_at = cut_at
        self.full_at = full_at
        self._handles: dict[int, File] = {}

    def _step(self) -> bool:
        """Count an operation. True when it is the one during which the power is cut; later ones fail at once."""
        self.operations += 1
        if self.cut_at is None or self.operations <= self.cut_at:
            return False
        if self.operations > self.cut_at + 1:
            raise OSError(errno.EIO, "the power is cut")
        return True

    def _end(self) -> None:
        raise OSError(errno.EIO, "the power is cut")

    def make_directory(self, path: str) -> None:
        pass

    def names(self, directory: str) -> list[str]:
        return sorted(self.disk.names)

    def identity(self, path: str) -> tuple[int, int]:
        return 0, id(self._find(path))

    def open(self, path: str, *, write: bool = False) -> int:
        name = path.rsplit("/", 1)[1]
        if write and name not in self.disk.names:
            if self._step():
                self._end()
            self.disk.names[name] = File()
        handle = len(self._handles) + 100
        self._handles[handle] = self._find(path)
        return handle

    def lock(self, path: str) -> int | None:
        handle = self.open(path, write=True)
        file = self._handles[handle]
        if file.is_locked:
            return None
        file.is_locked = True
        return handle

    def size(self, handle: int) -> int:
        return len(self._handles[handle].content)

    def read(self, handle: int, offset: int, into: memoryview) -> int:
        part = self._handles[handle].content[offset : offset + into.nbytes]
        into[: len(part)] = part
        return len(part)

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        content = b"".join(bytes(buffer) for buffer in buffers)
        is_cut = self._step()
        if is_cut:
            content = content[: len(content) // 2]
        used = sum(len(file.content) for file in self.disk.names.values())
        is_full = self.full_at is not None and used + len(content) > self.full_at
        if is_full:
            content = content[: len(content) // 3]
        file = self._handles[handle]
        file.content.extend(bytes(max(0, offset + len(content) - len(file.content))))
        file.content[offset : offset + len(content)] = content
        if is_cut:
            self._end()
        if is_full:
            raise OSError(errno.ENOSPC, "no space left")

    def cut(self, handle: int, size: int) -> None:
        if self._step():
            self._end()
        file = self._handles[handle]
        del file.content[size:]

    def sync(self, handle: int) -> None:
        if self._step():
            self._end()
        file = self._handles[handle]
        file.synced = bytearray(file.content)

    def sync_directory(self, path: str) -> None:
        if self._step():
            self._end()
        self.disk.synced_names = dict(self.disk.names)

    def remove(self, path: str) -> None:
        if self._step():
            self._end()
        self._find(path)
        del self.disk.names[path.rsplit("/", 1)[1]]

    def close(self, handle: int) -> None:
        self._handles[handle].is_locked = False

    def _find(self, path: str) -> File:
        name = path.rsplit("/", 1)[1]
        if name not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self.disk.names[name]
