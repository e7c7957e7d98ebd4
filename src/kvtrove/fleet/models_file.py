"""Which models there are: a TOML file with a table each, or a directory of checkpoints.

[small]                     # what requests call it
model = "/models/smollm2"   # required: what `kvtrove serve` takes
aliases = ["gpt-4o-mini"]
preload = true              # loaded at start rather than by its first request
idle = 600                  # seconds without a request after which it sleeps; 0: never (default: --idle)
kv = "2GiB"                 # and every other setting of the engine under its own name
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError, EngineConfig, nearest, parse_size

_SERVE = ("tool_format", "reasoning_parser", "cache_report", "stable_prefix", "max_prompt_tokens")
_OWN = ("model", "aliases", "preload", "idle")
_ENGINE = frozenset(f.name for f in fields(EngineConfig)) - {"model", "warm_up", "seed"}
KNOWN = (*_OWN, *sorted(_ENGINE), *_SERVE)
_NEGATABLE = {"enable_prefix_caching": "prefix-caching"}


@dataclass(frozen=True)
class ModelEntry:
    """idle: seconds, None is the server's own. settings: of engine and server, by name."""

    name: str
    model: str
    aliases: tuple[str, ...] = ()
    preload: bool = False
    idle: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kv(self) -> int | None:
        """Bytes of cache, where the entry says so."""
        return None if "kv" not in self.settings else parse_size(self.settings["kv"], f"[{self.name}] kv")

    def flags(self) -> list[str]:
        """The settings as flags of `kvtrove serve`."""
        flags = []
        for name, value in self.settings.items():
            word = _NEGATABLE.get(name, name.replace("_", "-"))
            if isinstance(value, bool):
                flags.append(f"--{word}" if value else f"--no-{word}")
                continue
            for one in value if isinstance(value, list) else [value]:
                flags += [f"--{word}", str(one)]
        return flags


def read_models(path: Path) -> tuple[ModelEntry, ...]:
    """The entries of a file, or of a directory: its folders and .gguf files. ConfigError naming the table."""
    entries = _of_directory(path) if path.is_dir() else _of_file(path)
    if not entries:
        raise ConfigError(f"--models: {path} holds no model; give a TOML file, or a directory of checkpoints")
    seen: dict[str, str] = {}
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if name in seen:
                raise ConfigError(f"--models: {name!r} names both [{seen[name]}] and [{entry.name}]; give each its own")
            seen[name] = entry.name
    return tuple(entries)


def _of_directory(path: Path) -> list[ModelEntry]:
    folders = [folder for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()]
    return [ModelEntry(one.name, str(one)) for one in folders] + [
        ModelEntry(one.stem, str(one)) for one in sorted(path.glob("*.gguf"))
    ]


def _of_file(path: Path) -> list[ModelEntry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--models: cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--models: {path} is not TOML: {error}") from error
    return [_entry(name, table, path) for name, table in tables.items()]


def _entry(name: str, table: Any, path: Path) -> ModelEntry:
    where = f"--models: {path}: [{name}]"
    if not isinstance(table, dict):
        raise ConfigError(f'{where} must be a table; write [{name}] and below it model = "..."')
    for key, value in table.items():
        if key not in KNOWN:
            raise ConfigError(f"{where}: unknown setting {key!r}{nearest(key, KNOWN)}")
        texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not (isinstance(value, str | int | float | bool) or key == "aliases" or (key == "lora_modules" and texts)):
            raise ConfigError(f"{where}: {key} must be one value, not {type(value).__name__}")
    aliases, idle = table.get("aliases", []), table.get("idle")
    if not isinstance(table.get("model"), str) or not table["model"]:
        raise ConfigError(f'{where}: has no model; write model = "/path/to/checkpoint"')
    if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise ConfigError(f'{where}: aliases must be a list of names, such as ["gpt-4o-mini"]')
    if not isinstance(table.get("preload", False), bool):
        raise ConfigError(f"{where}: preload must be true or false")
    if idle is not None and (isinstance(idle, bool) or not isinstance(idle, int | float) or idle < 0):
        raise ConfigError(f"{where}: idle: {idle!r} must be a number of seconds, 0 for never")
    settings = {key: value for key, value in table.items() if key not in _OWN}
    entry = ModelEntry(name, table["model"], tuple(aliases), table.get("preload", False), idle, settings)
    _ = entry.kv  # now, rather than when somebody asks for the model
    return entry
