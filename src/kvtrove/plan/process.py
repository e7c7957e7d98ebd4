"""What this process holds of the machine's memory, as the kernel counts it. Where it does not say, None."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path

PROC = Path("/proc/self")
LARGE = 4 * 2**20
"""Buffers from here on go back to the system when they are freed (`return_large_buffers`)."""
ARENAS = 2
"""Heaps of the C library (`return_large_buffers`)."""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8  # mallopt(3)
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak of the resident size starts anew


def resident_bytes(proc: Path = PROC) -> int | None:
    """Bytes of RAM held now, pages of mapped files included."""
    return _status("VmRSS", proc)


def peak_bytes(proc: Path = PROC) -> int | None:
    """The most that was held since the start of the process, or since `reset_peak`."""
    return _status("VmHWM", proc)


def reset_peak(proc: Path = PROC) -> bool:
    """Let `peak_bytes` start anew from what is held now. False where that is not allowed."""
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def return_freed_memory(load: Callable[[None], ctypes.CDLL] = ctypes.CDLL) -> bool:
    """Hand back to the system what the C library keeps of freed buffers. False where it cannot be told to."""
    try:
        trim = load(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return False
    trim(0)
    return True


def return_large_buffers(
    environ: Mapping[str, str] = os.environ, load: Callable[[None], ctypes.CDLL] = ctypes.CDLL
) -> bool:
    """Let the C library return large buffers at once, from now on, and keep small ones in few heaps.

    Left alone, glibc raises the limit with every buffer that is freed, to 32 MiB, so that the same step holds more when
    it is run again; and it gives each of up to eight threads per core a heap, each of which keeps what its thread has
    freed. Whoever set MALLOC_* or GLIBC_TUNABLES decided otherwise. Returns whether it was told.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ):
        return False
    try:
        mallopt = load(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: LARGE, _M_TRIM_THRESHOLD: 4 * LARGE, _M_ARENA_MAX: ARENAS}
    told = [bool(mallopt(name, value)) for name, value in wanted.items()]
    return all(told)


def _status(field: str, proc: Path) -> int | None:
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
