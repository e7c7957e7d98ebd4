"""What a process holds, as the kernel tells it."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

from kvtrove.plan.process import (
    ARENAS,
    LARGE,
    peak_bytes,
    reset_peak,
    resident_bytes,
    return_freed_memory,
    return_large_buffers,
)

SIZE = 64 * 2**20


def test_the_peak_stays_when_memory_is_given_back_until_it_is_reset() -> None:
    before = resident_bytes()
    assert before
    assert reset_peak()
    pages = mmap.mmap(-1, SIZE)
    pages[::4096] = b"x" * (SIZE // 4096)
    held = resident_bytes()
    assert held
    assert held - before > SIZE * 0.9
    pages.close()
    peak = peak_bytes()
    assert peak
    assert peak >= held * 0.99
    assert reset_peak()
    assert peak_bytes() < peak - SIZE * 0.9  # type: ignore[operator]


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "none") is None
    assert peak_bytes(tmp_path / "none") is None
    assert not reset_peak(tmp_path / "none")
    (tmp_path / "status").write_text("Name:\tpython\nVmSwap:\t0 kB\n")
    assert resident_bytes(tmp_path) is None


def test_freed_memory_goes_back() -> None:
    assert return_freed_memory()

    def other_library(_: None) -> ctypes.CDLL:
        raise OSError

    assert not return_freed_memory(other_library)


class Library:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, name: int, value: int) -> int:
        self.told.append((name, value))
        return 1


def test_large_buffers_are_returned_unless_the_environment_says_otherwise() -> None:
    library = Library()

    def load(_: None) -> Any:
        return library

    assert return_large_buffers({"HOME": "/root"}, load)
    assert library.told == [(-3, LARGE), (-1, 4 * LARGE), (-8, ARENAS)]
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        assert not return_large_buffers({name: "1"}, load)
    assert len(library.told) == 3
