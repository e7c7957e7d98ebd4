"""Every system call of the disk tier in one place, where a test can fail, tear or stop it. All raise OSError."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence

MOST_BUFFERS = 1024  # IOV_MAX of Linux
Buffer = bytes | bytearray | memoryview


class Files:
    """Handles are file descriptors; offsets and sizes are bytes."""

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def identity(self, path: str) -> tuple[int, int]:
        """(device, inode) of what lies under the name now."""
        found = os.stat(path)
        return found.st_dev, found.st_ino

    def open(self, path: str, *, write: bool = False) -> int:
        """To read, or to read and write, creating the file."""
        return os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o640)

    def lock(self, path: str) -> int | None:
        """The handle of a file that only one process can have; None when another has it. Ends with the process."""
        handle = self.open(path, write=True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            os.close(handle)
            raise
        return handle

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def read(self, handle: int, offset: int, into: memoryview) -> int:
        """Bytes read, fewer than asked for only at the end of the file."""
        done = 0
        while done < into.nbytes:
            count = os.preadv(handle, [into[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """All buffers, one after the other."""
        for first in range(0, len(buffers), MOST_BUFFERS):
            part = [memoryview(buffer) for buffer in buffers[first : first + MOST_BUFFERS]]
            while part:
                count = os.pwritev(handle, part, offset)
                offset += count
                while part and count >= part[0].nbytes:
                    count -= part.pop(0).nbytes
                if count:
                    part[0] = part[0][count:]

    def cut(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        """The bytes, and the size if it changed, are on the medium afterwards."""
        os.fdatasync(handle)

    def sync_directory(self, path: str) -> None:
        """The names of files that were created or removed are on the medium afterwards."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def close(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            os.close(handle)
