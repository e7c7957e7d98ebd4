"""Tool calls in a model's text, found while it streams. However the text is cut into pieces, the result is the same."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from kvtrove.server.chat.call_scanner import CallScanner


@dataclass(frozen=True, slots=True)
class Text:
    """Goes into the message's content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """Tool call number `index` of the message."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call `index`: JSON text as the model wrote it."""

    index: int
    text: str


_TAG = re.compile("</?tool_call>")
ChatEvent = Text | CallBegins | CallArguments


class ToolCallParser(Protocol):
    """One per output sequence."""

    def push(self, text: str) -> list[ChatEvent]: ...
    def finish(self) -> list[ChatEvent]: ...


class PlainText:
    """No tools: everything is content."""

    def push(self, text: str) -> list[ChatEvent]:
        return [Text(text)] if text else []

    def finish(self) -> list[ChatEvent]:
        return []


class _Call:
    """A call being read: turns what its scanner knows into events. `raw`: its text, given back if it is no call."""

    def __init__(self, index: int, raw: str) -> None:
        self.index, self.raw = index, raw
        self.scanner = CallScanner()
        self.begun = False
        self._num_told = 0

    def push(self, text: str, accepts: Collection[str] | None) -> tuple[list[ChatEvent], str]:
        """Events, and the text behind the call. accepts: names of the tools there are; None is any."""
        used = self.scanner.push(text)
        self.raw += text[:used]
        return list(self._news(accepts)), text[used:]

    def _news(self, accepts: Collection[str] | None) -> Iterator[ChatEvent]:
        name, arguments = self.scanner.name, self.scanner.arguments
        if accepts is None and self.scanner.done and arguments is None:
            arguments = "{}"
        if name is None or arguments is None or (accepts is not None and name not in accepts):
            return
        if not self.begun:
            self.begun = True
            yield CallBegins(self.index, f"call_{uuid.uuid4().hex[:24]}", name)
        if len(arguments) > self._num_told:
            yield CallArguments(self.index, arguments[self._num_told :])
            self._num_told = len(arguments)


class HermesParser:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, with text before (Hermes, Qwen)."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._held = ""  # not told yet: space, or the beginning of a tag
        self._call: _Call | None = None
        self._closing = False  # behind a call, before its closing tag
        self._num_calls = 0

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest = self._held + text
        self._held = ""
        while rest:
            if self._call is not None:
                rest = self._read_call(self._call, rest, events)
            elif self._closing:
                rest = self._skip_close(rest)
            else:
                rest = self._read_text(rest, events)
        return events

    def finish(self) -> list[ChatEvent]:
        call, self._call = self._call, None
        left = call.raw if call is not None and not call.begun else self._held
        self._held = ""
        return [Text(left)] if left and not (self._num_calls and left.isspace()) and not self._closing else []

    def _read_text(self, text: str, events: list[ChatEvent]) -> str:
        before, tag, rest = text.partition(self.OPEN)
        told = before.rstrip() if tag else _without_tail(before, self.OPEN)
        if told:
            events.append(Text(told))
        if tag:
            self._call = _Call(self._num_calls, before[len(told) :] + tag)
        else:
            self._held = before[len(told) :]
        return rest

    def _read_call(self, call: _Call, text: str, events: list[ChatEvent]) -> str:
        news, rest = call.push(text, None)
        events += news
        if call.scanner.done or call.scanner.broken:
            self._call = None
            self._closing = call.begun
            self._num_calls += call.begun
            if not call.begun:
                events.append(Text(call.raw))
        return rest

    def _skip_close(self, text: str) -> str:
        """Drop all up to the closing tag, or up to the next call if the model forgot to close this one."""
        tag = _TAG.search(text)
        if tag is None:
            self._held = text[-len(self.CLOSE) :]
            return ""
        self._closing = False
        return text[tag.end() if tag[0] == self.CLOSE else tag.start() :]


class Llama3Parser:
    """The whole answer is `{"name": ..., "parameters": {...}}`, several separated by `;` (Llama 3). Else it is text."""

    PREFIX = "<|python_tag|>"

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._call: _Call | None = None
        self._num_calls = 0
        self._plain = False  # the rest is text

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest = self._held + text
        self._held = ""
        while rest:
            if self._plain:
                events.append(Text(rest))
                rest = ""
            elif self._call is not None:
                rest = self._read_call(self._call, rest, events)
            else:
                rest = self._look_for_call(rest)
        return events

    def finish(self) -> list[ChatEvent]:
        call, self._call = self._call, None
        left = call.raw if call is not None and not call.begun else self._held
        self._held = ""
        return [Text(left)] if left.strip() or (left and not self._num_calls) else []

    def _look_for_call(self, text: str) -> str:
        start = text.lstrip()
        if self._num_calls:
            start = start.removeprefix(";").lstrip()
        start = start.removeprefix(self.PREFIX).lstrip()
        if start.startswith("{"):
            self._call = _Call(self._num_calls, text[: len(text) - len(start)])
            return start
        if not start or self.PREFIX.startswith(start):
            self._held = text
            return ""
        self._plain = True
        return text

    def _read_call(self, call: _Call, text: str, events: list[ChatEvent]) -> str:
        news, rest = call.push(text, self._names)
        events += news
        if call.scanner.done or call.scanner.broken:
            self._call = None
            self._num_calls += call.begun
            if not call.begun:
                self._plain = True
                return call.raw + rest
        return rest


def _without_tail(text: str, tag: str) -> str:
    """`text` without an end that may be the beginning of `tag`, and without the space before it."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return text[:-length].rstrip()
    return text.rstrip()
