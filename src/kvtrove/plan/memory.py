"""How much memory this machine has and has left: RAM, capped by the control group that we run in."""

from __future__ import annotations

from pathlib import Path

_CGROUP_FILES = (  # (limit, used): version 2, then version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping: MemAvailable, or what the control group leaves if that is less."""
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    for limit_name, used_name in _CGROUP_FILES:
        limit, used = (_number(root / "sys/fs/cgroup" / name) for name in (limit_name, used_name))
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit
