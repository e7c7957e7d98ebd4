"""The Jinja environment in which chat templates run, with the names and tags that transformers gives them.

A template is part of a checkpoint that somebody else wrote. It can read what it is given and nothing else: no attribute
of Python's own, no change to an object, no `range` beyond 100000 (Jinja's limit). What it may cost is bounded too: see
`bounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

from kvtrove.text.bounds import BoundedEnvironment
from kvtrove.text.json_text import write_json

Clock = Callable[[], datetime]


def sandbox(clock: Clock) -> BoundedEnvironment:
    """An environment for templates; `clock` tells them the time (strftime_now)."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], filters={"tojson": _tojson}
    )
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda format: clock().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks what the assistant wrote, for training; here it renders its body.

    The body is a block of its own, as in transformers: variables set inside are not seen after it.
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> str:
        return caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return write_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Dict:
    """dict(...) and dict.fromkeys(...), without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's namespace, which would also store names such as __call__. `self` is left to templates as a name."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names that begin with an underscore are Python's own")
