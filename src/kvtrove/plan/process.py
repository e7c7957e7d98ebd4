"""What this process holds of the machine's memory, as the kernel counts it. Where it does not say, None."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc/self")
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


def _status(field: str, proc: Path) -> int | None:
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
