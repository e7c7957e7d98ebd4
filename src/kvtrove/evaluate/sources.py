"""Where the dialogues of the recall grid come from: the demo model's world, or a user's own template."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvtrove.config import ConfigError, nearest


class Fact(Protocol):
    """statement and question are the user's, acknowledgement the assistant's; an answer with `value` in it is right."""

    @property
    def statement(self) -> str: ...
    @property
    def acknowledgement(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def value(self) -> str: ...


class Dialogue(Protocol):
    """A stream of facts and of fillers: (user's message, assistant's message) that say nothing about a fact."""

    def fact(self) -> Fact: ...
    def filler(self) -> tuple[str, str]: ...


Source = Callable[[int], Dialogue]
"""A seed -> the dialogue that it always gives."""


def world(seed: int) -> Dialogue:
    """The demo model's small world, phrased as it never was in training."""
    from kvtrove.demo.world import World

    return World(seed, "heldout")


@dataclass(frozen=True)
class Stated:
    """A Fact of a template."""

    statement: str
    acknowledgement: str
    question: str
    value: str


@dataclass(frozen=True)
class Template:
    """A user's own needle. "{value}" in the statement is replaced by one of the values.

    filler: what the user says in between, in random order. reply: what the assistant says to all of it.
    """

    statement: str
    question: str
    values: tuple[str, ...]
    filler: tuple[str, ...]
    reply: str = "OK."

    def __call__(self, seed: int) -> Dialogue:
        return _Drawn(self, random.Random(seed))


@dataclass(frozen=True)
class _Drawn:
    template: Template
    rng: random.Random

    def fact(self) -> Fact:
        own, value = self.template, self.rng.choice(self.template.values)
        return Stated(own.statement.replace("{value}", value), own.reply, own.question, value)

    def filler(self) -> tuple[str, str]:
        return self.rng.choice(self.template.filler), self.template.reply


def source(path: str | None) -> Source:
    """The world, or the template in a file. ConfigError says what is wrong with it."""
    return world if path is None else read_template(path)


def read_template(path: str) -> Template:
    """TOML (`*.toml`) or JSON. ConfigError names the field to change."""
    found = _load(path)
    known = ("statement", "question", "values", "filler", "reply")
    for name in found:
        if name not in known:
            raise ConfigError(f"needle: {path}: unknown field {name!r}{nearest(name, known)}")
    for name in known[:4]:
        if name not in found:
            raise ConfigError(f"needle: {path}: the field {name!r} is missing; there must be {', '.join(known[:4])}")
    for name in ("statement", "question", "reply"):
        if not isinstance(found.get(name, ""), str):
            raise ConfigError(f"needle: {path}: {name} must be text")
    for name in ("values", "filler"):
        entries = found[name]
        if not (isinstance(entries, list) and entries and all(isinstance(one, str) and one for one in entries)):
            raise ConfigError(f"needle: {path}: {name} must be a list of texts, none of them empty")
        found[name] = tuple(entries)
    template = Template(**found)
    _refuse_senseless(template, path)
    return template


def _load(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not {_language(path)}: {error}"
        raise ConfigError(f"needle: cannot read {path}: {reason}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"needle: {path} must hold an object with statement, question, values and filler")
    return found


def _language(path: str) -> str:
    return "TOML" if path.endswith(".toml") else "JSON (a TOML file ends in .toml)"


def _refuse_senseless(template: Template, path: str) -> None:
    """A value that the model can see elsewhere than in the statement would be recalled from there."""
    if "{value}" not in template.statement:
        raise ConfigError(f"needle: {path}: the statement must say {{value}} where the value stands")
    for name, texts in {
        "question": (template.question,),
        "filler": template.filler,
        "reply": (template.reply,),
    }.items():
        for value in template.values:
            if any(value in text for text in texts):
                raise ConfigError(f"needle: {path}: the value {value!r} stands in {name} too; it would be found there")
