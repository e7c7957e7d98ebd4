"""Functionary v3.2: an answer is several messages, each with its recipient in a line of its own.

all\nLet me see.>>>look_up\n{"q": "x"}>>>f\n{}         the prompt ends with the first >>>
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Text
from kvtrove.server.chat.thoughts import without_partial

MARK, EVERYBODY = ">>>", "all"


class RecipientParser:
    """What is for everybody is content, what is for a function is a call of it. A mark before anything else is text.

    names: of the functions. most: calls that are wanted.
    """

    def __init__(self, names: Collection[str], new_id: Callable[[str], str], *, most: int | None = None) -> None:
        self._recipients = frozenset([EVERYBODY, *names])
        self._longest = max(map(len, self._recipients))
        self._new_id, self._most = new_id, most
        self.satisfied = False
        self._mark = ""  # before the header that is being read
        self._in_header, self._in_call = True, False
        self._held = ""
        self._num_calls = 0

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest, self._held = self._held + text, ""
        while rest and not self.satisfied:
            rest = self._header(rest, events) if self._in_header else self._body(rest, events)
        return events

    def finish(self) -> list[ChatEvent]:
        held, self._held = self._held, ""
        half = self._in_header and any(name.startswith(held) for name in self._recipients)
        if self.satisfied or not held or (half and (self._in_call or self._num_calls)):
            return []
        left = self._mark + held if self._in_header else held
        return [CallArguments(self._num_calls, left) if self._in_call else Text(left)]

    def _header(self, text: str, events: list[ChatEvent]) -> str:
        line, ended, rest = text.partition("\n")
        if not ended and len(line) <= self._longest:
            self._held = text
            return ""
        name = line.strip()
        self._in_header = False
        if not ended or name not in self._recipients:
            if self._in_call:
                events.append(CallArguments(self._num_calls, self._mark))
            elif self._mark:
                events.append(Text(self._mark))
            return text
        if self._in_call:
            self._num_calls += 1
            self.satisfied = self._num_calls == self._most
        self._in_call = name != EVERYBODY
        if self._in_call and not self.satisfied:
            events.append(CallBegins(self._num_calls, self._new_id(name), name))
        return rest

    def _body(self, text: str, events: list[ChatEvent]) -> str:
        told, mark, rest = text.partition(MARK)
        if not mark:
            told = without_partial(text, (MARK,))
            self._held = text[len(told) :]
        if told:
            events.append(CallArguments(self._num_calls, told) if self._in_call else Text(told))
        if mark:
            self._mark, self._in_header = MARK, True
        return rest
