"""`kvtrove serve --models`: several models behind one address."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove.cli.flags import flag
from kvtrove.config import ConfigError, parse_size

if TYPE_CHECKING:
    from kvtrove.server.auth import Keyring
    from kvtrove.server.settings import ServerSettings

_models = functools.partial(flag, "Several models")
_COLD = ("wait", "refuse")
_TLS = ("ssl_certfile", "ssl_keyfile", "root_path")
_OF_THE_FRONT = frozenset(
    {
        "model",
        "models",
        "memory",
        "idle",
        "cold",
        "host",
        "port",
        "cors_origin",
        "served_model_name",
        "listen_fd",
        "kv",
        *_TLS,
    }
)
"""Flags that the server of all models keeps to itself; the process of each model gets the others."""


@dataclass(frozen=True)
class FleetOptions:
    """Several models. They load on demand within one budget of memory, each in a process of its own."""

    models: Annotated[Path | None, _models("PATH", "A directory of checkpoints, or a TOML file with a table each.")] = (
        None
    )
    memory: Annotated[str | None, _models("SIZE", "Of all of them together; what is free without it.")] = None
    idle: Annotated[float, _models("SECONDS", "Without a request, after which a model sleeps; 0: never.")] = 0.0
    cold: Annotated[str, _models("WHAT", "A request for a model that sleeps: wait, or refuse with 503.")] = "wait"


def serve_models(options: FleetOptions, settings: ServerSettings, keyring: Keyring, context: typer.Context) -> None:
    """Serve until a signal. ConfigError for a model that cannot be, or does not fit."""
    from kvtrove.fleet.models_file import read_models
    from kvtrove.fleet.run import FleetSettings, serve_models

    if options.cold not in _COLD:
        raise ConfigError(f"--cold: {options.cold!r} is not one of {', '.join(_COLD)}")
    if options.idle < 0:
        raise ConfigError(f"--idle: {options.idle:g} must be a number of seconds, 0 for never")
    assert options.models is not None
    memory = None if options.memory is None else parse_size(options.memory, "--memory")
    fleet = FleetSettings(memory, options.idle, options.cold == "wait", tuple(given_flags(context)))
    serve_models(read_models(options.models), settings, keyring, fleet, typer.echo)


def given_flags(context: typer.Context) -> list[str]:
    """The flags of this command line, and of its --config, that hold for every model, to be given on."""
    flags: list[str] = []
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        source = context.get_parameter_source(name)
        given = source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")  # here, or in --config
        if name in _OF_THE_FRONT or name not in context.params or not given:
            continue
        if isinstance(value, bool):
            flags.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                flags += [parameter.opts[0], str(one)]
    return flags
