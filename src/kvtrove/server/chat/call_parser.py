"""Tool calls in a model's text, found while it streams. However the text is cut into pieces, the result is the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from kvtrove.server.chat.call_readers import CallReader, ReaderFactory
from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Text
from kvtrove.server.chat.thoughts import without_partial
from kvtrove.server.chat.tool_schema import Types


class ContentParser(Protocol):
    """Reads the answer behind the thought. One per output sequence."""

    satisfied: bool  # no more is wanted: what comes now is dropped

    def push(self, text: str) -> list[ChatEvent]: ...
    def finish(self) -> list[ChatEvent]: ...


class PlainText:
    """No tools: everything is content."""

    satisfied = False

    def push(self, text: str) -> list[ChatEvent]:
        return [Text(text)] if text else []

    def finish(self) -> list[ChatEvent]:
        return []


@dataclass(frozen=True)
class CallSyntax:
    """How calls stand in a text.

        Let me see. <open> call , call <close> more text

    opens: marks before one call or several. closes: marks behind them; without one, a text that is no call ends the
    calls. starts: matches where another call begins. direct: begins a call by itself, and belongs to it. lead:
    characters between an opening mark and a call. reader: reads one call. bare: matches an answer that is a call
    without any mark; only calls of tools that there are count then. bare_reader: reads those.
    """

    reader: ReaderFactory
    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    starts: str = r"\{"
    direct: tuple[str, ...] = ()
    lead: str = " \t\r\n["
    separators: tuple[str, ...] = (",", ";", "]")
    bare: str = ""
    bare_reader: ReaderFactory | None = None
    fences: tuple[str, ...] = ()

    @cached_property
    def mark(self) -> re.Pattern[str]:
        """An opening mark, or a beginning of a call that needs none."""
        return _any_of(*self.opens, *self.direct)

    @cached_property
    def next(self) -> re.Pattern[str]:
        """What may follow behind a call, as groups: close, open, start."""
        close, opening = (_any_of(*marks).pattern for marks in (self.closes, self.opens))
        return re.compile(f"({close})|({opening})|({self.starts})")


def _any_of(*literals: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True))) or "(?!)")


class _Call:
    """A call being read. raw: its text from its mark on, given back if it is no call."""

    def __init__(self, reader: CallReader, mark: str, lead: str, accepts: Collection[str] | None) -> None:
        self.reader, self.mark, self.raw = reader, mark, mark
        self.begun = False
        self._lead, self._accepts, self._num_told = lead, accepts, 0
        self._in_lead = True

    def push(self, text: str, index: int, new_id: Callable[[str], str]) -> tuple[list[ChatEvent], str]:
        """Events, and the text behind the call."""
        start = 0
        if self._in_lead:
            start = len(text) - len(text.lstrip(self._lead))
            if start == len(text):
                self.raw += text
                return [], ""
            self._in_lead = False
        used = start + self.reader.push(text[start:])
        self.raw += text[:used]
        return list(self._news(index, new_id)), text[used:]

    def _news(self, index: int, new_id: Callable[[str], str]) -> Iterator[ChatEvent]:
        name, arguments = self.reader.name, self.reader.arguments
        if self._accepts is None and self.reader.done and arguments is None:
            arguments = "{}"
        if name is None or arguments is None or (self._accepts is not None and name not in self._accepts):
            return
        if not self.begun:
            self.begun = True
            yield CallBegins(index, new_id(name), name)
        if len(arguments) > self._num_told:
            yield CallArguments(index, arguments[self._num_told :])
            self._num_told = len(arguments)


class CallParser:
    """Finds calls of one syntax in a text.

    names: of the tools there are. types: looks up schemas of parameters. new_id: makes the id of a call of a name.
    most: calls that are wanted; the answer is satisfied when the last of them is complete. forced: the answer is made
    of calls alone, so that half a mark at its end is no content.
    """

    def __init__(
        self,
        syntax: CallSyntax,
        names: Collection[str],
        types: Types,
        new_id: Callable[[str], str],
        *,
        most: int | None = None,
        forced: bool = False,
    ) -> None:
        self._syntax, self._names, self._types, self._new_id = syntax, frozenset(names), types, new_id
        self._most, self._forced = most, forced
        self.satisfied = False
        self._held = ""  # not told yet: space, or the beginning of a mark
        self._call: _Call | None = None
        self._state = "start" if syntax.bare else "text"
        self._wrapped = False  # the calls being read have a closing mark to come
        self._num_calls = 0

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest, self._held = self._held + text, ""
        while rest and not self.satisfied:
            rest = getattr(self, f"_in_{self._state}")(rest, events)
        return events

    def finish(self) -> list[ChatEvent]:
        call, self._call = self._call, None
        held, self._held = self._held, ""
        if self.satisfied or self._state == "wrapped":
            return []
        left = "" if call is not None and call.begun else call.raw if call is not None else held
        markup = call is not None or self._state == "loose" or bool(self._pending(held))
        if (markup and (self._forced or self._num_calls)) or (self._num_calls and left.isspace()):
            return []
        return [Text(left)] if left else []

    # ---- states ----

    def _in_start(self, text: str, events: list[ChatEvent]) -> str:
        """Nothing has been written: the answer may be a call without marks."""
        start = text.lstrip()
        if any(fence.startswith(start) for fence in self._syntax.fences) or not start:
            self._held = text
            return ""
        fence = next((fence for fence in self._syntax.fences if start.startswith(fence)), "")
        start = start[len(fence) :].lstrip()
        if not start:
            self._held = text
            return ""
        found = re.match(self._syntax.bare, start)
        if found is None:
            self._state = "text"
            return text
        self._begin_unmarked(text[: len(text) - len(start)], self._names)
        return start

    def _in_text(self, text: str, events: list[ChatEvent]) -> str:
        found = self._syntax.mark.search(text)
        self._wrapped = False
        before = text if found is None else text[: found.start()]
        told = (before[: len(before) - len(self._pending(before))] if found is None else before).rstrip()
        if told:
            events.append(Text(told))
        if found is None:
            self._held = before[len(told) :]
            return ""
        self._begin(before[len(told) :], found)
        return text[found.start() if found[0] in self._syntax.direct else found.end() :]

    def _in_call(self, text: str, events: list[ChatEvent]) -> str:
        call = self._call
        assert call is not None
        news, rest = call.push(text, self._num_calls, self._new_id)
        events += news
        if not (call.reader.done or call.reader.broken):
            return rest
        self._call = None
        if call.begun:
            self._num_calls += 1
            self._state = "wrapped" if self._wrapped else "loose"
            self.satisfied = self._num_calls == self._most
            return rest
        self._state = "text"
        if call.mark:  # the mark is text; what follows it is looked at again
            events.append(Text(call.mark))
        else:
            events.append(Text(call.raw[:1]))
            call.raw = call.raw[1:]
        return call.raw[len(call.mark) :] + rest

    def _in_wrapped(self, text: str, events: list[ChatEvent]) -> str:
        """Behind a call: another one, or the closing mark. What else stands there is dropped."""
        found = self._syntax.next.search(text)
        if found is None:
            self._held = text[-max(map(len, (*self._syntax.closes, *self._syntax.opens))) :]
            return ""
        if found[1]:
            self._state = "text"
            return text[found.end() :]
        self._begin("", found)
        return text[found.end() if found[2] else found.start() :]

    def _in_loose(self, text: str, events: list[ChatEvent]) -> str:
        """Behind a call that no mark closes: another one, or text."""
        rest, syntax = text.lstrip(), self._syntax
        while (separator := next((s for s in syntax.separators if rest.startswith(s)), None)) is not None:
            rest = rest[len(separator) :].lstrip()
        literals = (*syntax.separators, *syntax.opens, *syntax.direct)
        if not rest or any(literal.startswith(rest) for literal in literals):
            self._held = text
            return ""
        if syntax.mark.match(rest):
            self._state = "text"
            return rest
        if re.match(syntax.starts, rest):
            self._begin_unmarked("", self._names if syntax.bare else None)
            return rest
        self._state = "text"
        return text if rest == text.lstrip() else rest

    # ---- parts ----

    def _begin(self, space: str, found: re.Match[str]) -> None:
        """A call at a mark, or at a start between marks. space: what stands before it."""
        marked = found[0] in self._syntax.opens
        self._wrapped = bool(self._syntax.closes) and (marked or self._wrapped)
        mark = space + (found[0] if marked else "")
        self._call = _Call(self._syntax.reader(self._types), mark, self._syntax.lead, None)
        self._state = "call"

    def _begin_unmarked(self, before: str, accepts: Collection[str] | None) -> None:
        make = self._syntax.bare_reader if accepts is not None else None
        self._call = _Call((make or self._syntax.reader)(self._types), before, self._syntax.lead, accepts)
        self._wrapped, self._state = False, "call"

    def _pending(self, text: str) -> str:
        """The end of `text` that may be the beginning of a mark."""
        return text[len(without_partial(text, (*self._syntax.opens, *self._syntax.direct))) :]
