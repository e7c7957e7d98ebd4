"""What there is to know of one form of tool calls: how it is read, and how a forced call is written in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvtrove.server.chat.call_parser import CallSyntax
from kvtrove.server.chat.harmony import MARKS as HARMONY_MARKS
from kvtrove.server.chat.recipients import MARK as RECIPIENT_MARK

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


@dataclass(frozen=True)
class Written:
    """How a forced call is written. Every part is plain text; `{name}` and `{key}` are filled in.

        head call between call tail          call: before, arguments, after

    kind: `object` (arguments are one JSON object), `parameters` (each value between `opening` and `closing`, strings as
    they are, between two `quote`; `joint` between two parameters) or `json_parameters` (strings as JSON writes them).
    between: None when the form holds one call alone.
    """

    before: str
    after: str = ""
    between: str | None = "\n"
    head: str = ""
    tail: str = ""
    kind: Literal["object", "parameters", "json_parameters"] = "object"
    opening: str = ""
    closing: str = ""
    joint: str = ""
    quote: str = ""

    def beginning(self, name: str) -> tuple[str, str]:
        """What stands before the arguments of a first call of this name."""
        return self.head, self.before.replace("{name}", name)


@dataclass(frozen=True)
class ToolFormat:
    """aliases: vLLM's names of parsers that read this form. evidence: marks in a template's source that tell the form
    where the template itself writes no call. syntax: None for forms that have a parser of their own (harmony, and
    functionary's, whose messages have recipients).
    """

    name: str
    syntax: CallSyntax | None
    written: Written
    aliases: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()

    @property
    def has_recipients(self) -> bool:
        return self.written.between == RECIPIENT_MARK

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must reach the parser although a tokenizer may hold them for special tokens."""
        w = self.written
        if self.has_recipients:
            return ()  # plain text
        if self.syntax is None:
            return HARMONY_MARKS
        written = (w.head, w.before, w.after, w.tail, w.opening, w.closing, w.quote)
        return (*self.syntax.opens, *self.syntax.closes, *self.syntax.direct, *written)
