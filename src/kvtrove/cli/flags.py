"""How flags are made: of the fields of EngineConfig, and of the fields of a command's dataclasses.

A command takes groups of options; `spread` turns each field of a group into a flag and hands the command the group:

    @spread
    def generate(model: ModelArgument, sampling: SamplingOptions, engine: EngineOptions) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from kvtrove.config import CACHE_ALIASES, EngineConfig

SETTINGS = {field.name: field for field in fields(EngineConfig) if "help" in field.metadata}
"""The engine settings that are flags."""


def flag(panel: str | None, metavar: str | None, help: str, *names: str, **more: Any) -> Any:
    """A flag with its place in the help. names: when they are not made of the parameter's name."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def setting(name: str, panel: str | None = None, **more: Any) -> Any:
    """The flag of an engine setting in another command: its metavar and help, under `panel`."""
    about = SETTINGS[name].metadata
    return flag(panel, about["metavar"], about["help"], **more)


class EngineSettings:
    """Values of all engine settings that are flags, as a command got them; EngineConfig checks them."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    @classmethod
    def flags(cls) -> list[inspect.Parameter]:
        hints = get_type_hints(EngineConfig)
        own = [_parameter(field, _typed(field, hints[field.name])) for field in SETTINGS.values()]
        return own + [_hidden(name) for name in CACHE_ALIASES]


def _typed(field: Field[Any], hint: Any) -> Any:
    """The field's type as a flag takes it, with its texts: a size or a count with a unit comes as text."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    about = field.metadata
    name = about["flag"] or field.name.replace("_", "-")
    names = [f"--{name}/--no-{name}"] if hint is bool else [f"--{name}"]
    value = (str | None if field.default is None else str) if str in parts else hint
    if tuple[str, ...] in parts:
        value = list[str]  # a flag that may be repeated
    return Annotated[value, flag(about["panel"], about["metavar"], about["help"], *names)]


def _hidden(name: str) -> inspect.Parameter:
    """A flag of another engine, which scripts may still use."""
    annotation = Annotated[str | None, typer.Option(f"--{name.replace('_', '-')}", hidden=True)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _flags_of(group: Any) -> list[inspect.Parameter]:
    """The flags of a group: those that it lists, else one for each field of the dataclass."""
    if not is_dataclass(group):
        return group.flags()
    hints = get_type_hints(group, include_extras=True)
    return [_parameter(field, hints[field.name]) for field in fields(group)]


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "flags"))


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the flags of each of its parameters that is a group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _flags_of(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{flag.name: values.pop(flag.name) for flag in _flags_of(group)})
        command(**values)

    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_flags
