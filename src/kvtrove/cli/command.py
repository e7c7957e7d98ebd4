"""A command: its flags also come from a TOML file, can be printed as one, and may be those of vLLM and llama.cpp."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from kvtrove.config import ConfigError, nearest
from kvtrove.foreign import translate

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
_SECRETS = frozenset({"api_key"})


class Command(TyperCommand):
    """Every command is one. `--config FILE` is read before the command line, which wins."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        settings["context_settings"] = HELP_NAMES | (settings.get("context_settings") or {})
        super().__init__(name, **settings)
        self.params += [
            TyperOption(
                param_decls=["--config"],
                metavar="FILE",
                help='TOML: any of these flags, as `kv = "8GiB"`; the command line wins.',
                expose_value=False,
            ),
            TyperOption(
                param_decls=["--print-config"],
                is_flag=True,
                help="Print all flags as such a file, and do nothing else.",
                expose_value=False,
            ),
        ]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        try:
            given = translate(args, own)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        arguments = [p.name for p in self.params if p.param_type_name == "argument"]
        words = given.args
        if given.model is not None and "model" in arguments:
            words = [given.model, *words] if arguments[0] == "model" else [*words, given.model]
        elif given.model is not None:
            raise ConfigError(f"{self.name} takes no model")
        for note in given.notes:
            typer.echo(f"note: {note}", err=True)
        path = _value_of("--config", words)
        if path is not None:
            ctx.default_map = {**(ctx.default_map or {}), **self._read(Path(path))}
        ctx.meta["print_config"] = "--print-config" in words
        return super().parse_args(ctx, words)

    def invoke(self, ctx: Any) -> Any:
        if not ctx.meta.get("print_config"):
            return super().invoke(ctx)
        for line in self._as_toml(ctx.params):
            typer.echo(line)
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        """Values by parameter. Names are the flags' without dashes in front, or the settings'; a table [serve] holds
        what only `kvtrove serve` takes. So one file serves several commands: what is a flag of another one is noted.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"--config: there is no file {path}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"--config: {path}: {error}") from error
        own = values.get(self.name or "", {})
        plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
        known = {spelling: p.name for p in self._settable() for spelling in _spellings(p)}
        unknown = [name for name in plain | own if name.replace("_", "-") not in known]
        elsewhere = _flags_of_all_commands() if unknown else set()
        for name in unknown:
            if name in own or name.replace("_", "-") not in elsewhere:
                raise ConfigError(f"--config: {path}: unknown flag {name!r}{nearest(name, known)}")
        if unknown:
            typer.echo(f"note: {path}: {self.name} has no {', '.join(unknown)}; flags of other commands", err=True)
        return {known[key]: value for name, value in (plain | own).items() if (key := name.replace("_", "-")) in known}

    def _as_toml(self, values: dict[str, Any]) -> Iterator[str]:
        for parameter in self._settable():
            if getattr(parameter, "hidden", False):
                continue
            name, value = _key(parameter), values.get(parameter.name)
            if parameter.name in _SECRETS:
                yield f"# {name} is a secret"
            elif value is None or value == ():
                yield f"# {name} ="
            else:
                yield f"{name} = {_toml(value)}"

    def _settable(self) -> list[Any]:
        """Parameters that a file may set."""
        return [p for p in self.params if p.expose_value and p.name != "help"]


def _flags_of_all_commands() -> set[str]:
    """As files write them. Imports every command."""
    from kvtrove.cli.main import COMMANDS, app

    root: Any = typer.main.get_command(app)
    found = [root.get_command(None, name) for name in COMMANDS]
    found += [nested for group in found for nested in getattr(group, "commands", {}).values()]
    return {spelling for command in found for parameter in command.params for spelling in _spellings(parameter)}


def _key(parameter: Any) -> str:
    """The name of a parameter in a file: its flag's."""
    long = [flag for flag in parameter.opts if flag.startswith("--")]
    return str(long[0].removeprefix("--") if long else parameter.name.replace("_", "-"))


def _spellings(parameter: Any) -> set[str]:
    return {_key(parameter), parameter.name.replace("_", "-")}


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for at, word in enumerate(words):
        if word == flag and at + 1 < len(words):
            return words[at + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value if isinstance(value, (bool, int, float, str)) else str(value), ensure_ascii=False)
