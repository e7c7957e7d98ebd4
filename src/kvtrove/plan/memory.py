"""How much memory this machine has and has left: RAM, capped by the control group that we run in, and CUDA devices."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = (  # controller in /proc/self/cgroup, mount, limit, used: version 2, then version 1
    ("", ".", "memory.max", "memory.current"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_LIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}
"""ulimit -v and -d by their names in /proc/self/limits, and what counts against them in /proc/self/status."""
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
    """RAM, or less where a control group of ours, one around it, or a limit of the process (`ulimit -v`) allows less.

    root: where proc and sys are (tests bring their own).
    """
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit, left in (*_group_limits(root), *_process_limits(root / "proc/self")):
        total, free = min(total, limit), min(free, max(0, left))
    return Store("RAM", total, free)


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes left) of our control group and of all around it. Pages of files can be given up: they are free."""
    for controller, mount, limit_name, used_name in _CGROUPS:
        at = root / "sys/fs/cgroup" / mount
        own = at / _own_group(root, controller).lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(at):
                break
            limit, used = _number(group / limit_name), _number(group / used_name)
            if limit is not None and used is not None and limit < NO_LIMIT:
                yield limit, limit - used + (_field(group / "memory.stat", "inactive_file") or 0)


def _own_group(root: Path, controller: str) -> str:
    """Path of our group in the hierarchy of a controller; the top where the kernel does not say."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    found = (line.split(":", 2) for line in lines if line.count(":") >= 2)
    return next((path for _, names, path in found if controller in names.split(",")), "")


def _process_limits(proc: Path) -> Iterator[tuple[int, int]]:
    try:
        lines = (proc / "limits").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        for name, counted in _LIMITS.items():
            soft = line.removeprefix(name).split()[:1] if line.startswith(name) else []
            if soft and soft[0].isdigit():
                yield int(soft[0]), int(soft[0]) - 1024 * (_field(proc / "status", f"{counted}:") or 0)


def _field(path: Path, name: str) -> int | None:
    """The number behind `name` in a file of lines."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(words[1]) for line in lines if (words := line.split())[:1] == [name]), None)


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
