"""Harmony, the form of gpt-oss: an answer is several messages, each with a channel and perhaps a recipient.

<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>
header              body           ends    header of the next message ...                          body
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Reasoning, Text
from kvtrove.server.chat.thoughts import without_partial

MESSAGE, START = "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
MARKS = (*ENDS, MESSAGE, "<|channel|>", "<|constrain|>")

_END = re.compile("|".join(map(re.escape, ENDS)))
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """Analysis is the thought, final and commentary without a recipient are content, messages to functions are calls.

    most: calls that are wanted. with_calls: there are tools; without them such a message is content.
    """

    def __init__(self, new_id: Callable[[str], str], *, most: int | None = None, with_calls: bool = True) -> None:
        self._new_id, self._most, self._with_calls = new_id, most, with_calls
        self.satisfied = False
        self._header: str | None = ""  # what was read of it; None inside a body
        self._kind = "final"
        self._held = ""
        self._num_calls = 0

    @property
    def inside(self) -> bool:
        return self._header is None and self._kind == "analysis"

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest, self._held = self._held + text, ""
        while rest and not self.satisfied:
            rest = self._in_body(rest, events) if self._header is None else self._in_header(rest, events)
        return events

    def finish(self) -> list[ChatEvent]:
        held, self._held = self._held, ""
        if self._header is not None or self.satisfied:
            return []
        told = without_partial(held, ENDS)
        return [self._event(told)] if told.strip() else []

    def _in_header(self, text: str, events: list[ChatEvent]) -> str:
        before, mark, rest = text.partition(MESSAGE)
        if not mark:
            start = text.lstrip()
            if start and not any(s.startswith(start[: len(s)]) or start.startswith(s) for s in _HEADER_BEGINS):
                self._header, self._kind = None, "final"  # a model that leaves the form: all is content
                return text
            self._held = text
            return ""
        channel, recipient = _CHANNEL.search(before), _RECIPIENT.search(before)
        self._kind = channel[1] if channel else "final"
        self._header = None
        if recipient is not None and recipient[1].startswith("functions.") and self._with_calls:
            name = recipient[1].removeprefix("functions.")
            self._kind = "call"
            events.append(CallBegins(self._num_calls, self._new_id(name), name))
        elif recipient is not None:
            self._kind = "analysis"  # to a tool of the model's own, which nobody here runs
        return rest

    def _in_body(self, text: str, events: list[ChatEvent]) -> str:
        found = _END.search(text)
        told = without_partial(text, ENDS) if found is None else text[: found.start()]
        if found is None and self._kind != "call":
            told = told.rstrip()
        if told:
            events.append(self._event(told))
        if found is None:
            self._held = text[len(told) :]
            return ""
        if self._kind == "call":
            self._num_calls += 1
            self.satisfied = self._num_calls == self._most
        self._header = ""
        return text[found.end() :]

    def _event(self, text: str) -> ChatEvent:
        if self._kind == "call":
            return CallArguments(self._num_calls, text)
        return Reasoning(text) if self._kind == "analysis" else Text(text)


_HEADER_BEGINS = ("<|", "to=", "assistant", "analysis", "commentary", "final", "json")
