"""Tiers as users write them: "ram:8GiB,codec=zstd", "disk:/var/cache/kv,100GiB,durability=strict", "redis://host/0,ttl=1h"."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from kvtrove.config import ConfigError, nearest, parse_size
from kvtrove.kv.tiers.admission import ADMISSIONS
from kvtrove.kv.tiers.codec import CODECS
from kvtrove.kv.tiers.disk import DiskSettings
from kvtrove.kv.tiers.disk_log import DURABILITIES
from kvtrove.kv.tiers.ram import ORDERS, RamSettings
from kvtrove.kv.tiers.redis import RedisSettings

Settings = RamSettings | DiskSettings | RedisSettings

EXAMPLES = "ram:8GiB, disk:/var/cache/kvtrove,100GiB or redis://localhost:6379/0"
MOST_BY_DEFAULT = 64 << 30
LEAST_DISK = 16 << 20
_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_tier(text: str) -> Settings:
    """The settings of a tier. ConfigError names what is wrong and a value that works."""
    kind = re.split(r"[:,]", text.strip(), maxsplit=1)[0]
    if kind not in ("ram", "disk", "redis", "rediss", "unix"):
        raise ConfigError(
            f"tier: {text!r} is none{nearest(kind, ['ram', 'disk', 'redis'])}; write for example {EXAMPLES}"
        )
    first, *rest = (part.strip() for part in text.strip().split(","))
    if kind in ("ram", "disk"):
        first = first.partition(":")[2]
    name = kind if kind in ("ram", "disk") else "redis"
    plain = [part for part in rest if "=" not in part]
    options = _options(name, [part for part in rest if "=" in part])
    sizes = ([first] if name == "ram" else []) + plain
    if len(sizes) > 1:
        raise ConfigError(
            f"tier {name}: {', '.join(map(repr, sizes))} are several sizes; give one, for example {EXAMPLES}"
        )
    if name == "ram":
        return RamSettings(parse_size(first, "tier ram"), **options)
    size = parse_size(sizes[0], f"tier {name}") if sizes else None
    if name == "disk":
        return _disk(first, size, options)
    return RedisSettings(first, **options) if size is None else RedisSettings(first, size, **options)


def default_size(path: str) -> int:
    """Bytes for a disk tier without a size: half of what is free there or the tier's already, 64 GiB at most."""
    path = os.path.abspath(os.path.expanduser(path))
    taken = 0
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            taken = sum(entry.stat().st_size for entry in entries if entry.is_file())
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return min(MOST_BY_DEFAULT, (found.f_bavail * found.f_frsize + taken) // 2)


def _disk(path: str, size: int | None, options: dict[str, Any]) -> DiskSettings:
    if not path:
        raise ConfigError("tier disk: name a directory, for example disk:/var/cache/kvtrove,100GiB")
    free = default_size(path) if size is None else size
    if free < LEAST_DISK and size is None:
        raise ConfigError(f"tier disk: half of what is free at {path} is {free} bytes; choose one with 32MiB free")
    if free < LEAST_DISK:
        raise ConfigError(f"tier disk: {free} bytes are less than it needs; give 16MiB or more")
    return DiskSettings(path, free, **options)


def parse_seconds(text: str, what: str) -> float:
    """Seconds of "250ms", "2", "2s", "5m", "1h" or "1d"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise ConfigError(f"{what}: cannot read {text!r} as a time; write for example 500ms, 2s or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _one_of(names: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(text: str, what: str) -> str:
        if text not in names:
            raise ConfigError(f"{what}: {text!r} is not one of {', '.join(names)}{nearest(text, names)}")
        return text

    return parse


def _flag(text: str, what: str) -> bool:
    return _one_of(("yes", "no"))(text, what) == "yes"


_COMMON: Mapping[str, Callable[[str, str], Any]] = {"admit": _one_of(ADMISSIONS), "timeout": parse_seconds}
OPTIONS: Mapping[str, Mapping[str, Callable[[str, str], Any]]] = {
    "ram": {**_COMMON, "codec": _one_of(("none", *CODECS)), "eviction": _one_of(ORDERS)},
    "disk": {
        **_COMMON,
        "durability": _one_of(DURABILITIES),
        "in_flight": parse_size,
        "read_only": _flag,
    },
    "redis": {**_COMMON, "ttl": parse_seconds, "in_flight": parse_size},
}
"""Tier -> option -> how its value is read."""


def _options(name: str, parts: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in parts:
        option, _, value = (piece.strip() for piece in part.partition("="))
        if option not in OPTIONS[name]:
            known = ", ".join(OPTIONS[name])
            raise ConfigError(f"tier {name}: no option {option!r}{nearest(option, OPTIONS[name])}; it has {known}")
        options[option] = OPTIONS[name][option](value, f"tier {name}, {option}")
    return options
