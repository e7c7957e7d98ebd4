"""How much memory this machine has and has left: RAM, capped by the control group that we run in, and CUDA devices."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CGROUP_FILES = (  # (limit, used): version 2, then version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
NO_LIMIT = 2**62
"""Version 1 writes "no limit" as the largest multiple of the page size."""


@dataclass(frozen=True)
class Store:
    """A memory that a model can live in. total, free: bytes."""

    name: str
    total: int
    free: int


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping: MemAvailable, or what the control group leaves if that is less."""
    return host(root).free


def host(root: Path = Path("/")) -> Store:
    """RAM. `root`: where proc and sys are (tests bring their own)."""
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit_name, used_name in _CGROUP_FILES:
        limit, used = (_number(root / "sys/fs/cgroup" / name) for name in (limit_name, used_name))
        if limit is not None and used is not None and limit < NO_LIMIT:
            total, free = min(total, limit), min(free, max(0, limit - used))
    return Store("RAM", total, free)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


class _NVMLMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def cuda_devices(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> list[Store]:
    """GPUs as the driver's management library reports them; none without it. No torch, no CUDA context."""
    try:
        nvml = load("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    try:
        return [store for index in range(count.value) if (store := _device(nvml, index))]
    finally:
        nvml.nvmlShutdown()


def _device(nvml: ctypes.CDLL, index: int) -> Store | None:
    handle, memory, name = ctypes.c_void_p(), _NVMLMemory(), ctypes.create_string_buffer(96)
    failed = (
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        or nvml.nvmlDeviceGetName(handle, name, len(name))
    )
    return None if failed else Store(name.value.decode(), memory.total, memory.free)
