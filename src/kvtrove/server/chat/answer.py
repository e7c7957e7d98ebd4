"""An answer as it is written: thought, content and calls. The one parser that the routes know."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtrove.server.chat.call_parser import CallParser, ContentParser, PlainText
from kvtrove.server.chat.call_readers import types_of
from kvtrove.server.chat.events import ChatEvent, Text
from kvtrove.server.chat.harmony import HarmonyParser
from kvtrove.server.chat.recipients import RecipientParser
from kvtrove.server.chat.thoughts import ThoughtFormat, ThoughtSplitter
from kvtrove.server.chat.tool_format import Tool, ToolFormat

NewId = Callable[[str], str]  # name of the function -> id of a call of it
_ALPHANUMERIC = string.ascii_letters + string.digits


def call_ids(length: int | None) -> NewId:
    """Ids as OpenAI makes them, or `length` letters and digits where a template accepts no others."""
    if length is None:
        return lambda name: f"call_{uuid.uuid4().hex[:24]}"
    return lambda name: "".join(secrets.choice(_ALPHANUMERIC) for _ in range(length))


@dataclass(frozen=True)
class AnswerSyntax:
    """How a model writes its answers. id_length: of calls' ids, None where any will do. thinks: it is known to think,
    rather than only read as one that may.
    """

    tools: ToolFormat
    thoughts: ThoughtFormat
    id_length: int | None = None
    thinks: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must reach the parser although a tokenizer may hold them for special tokens."""
        return (*self.tools.marks, self.thoughts.open, self.thoughts.close)

    def parser(
        self, tools: Sequence[Tool], *, in_thought: bool = False, most: int | None = None, forced: bool = False
    ) -> AnswerParser:
        """For one output sequence. in_thought: the prompt ends inside a thought. most, forced: see CallParser."""
        new_id = call_ids(self.id_length)
        if self.thoughts.name == "harmony":
            return AnswerParser(None, HarmonyParser(new_id, most=most, with_calls=bool(tools)))
        thought = ThoughtSplitter(self.thoughts, in_thought)
        if self.tools.has_recipients:
            names = [tool["function"]["name"] for tool in tools]
            return AnswerParser(thought, RecipientParser(names, new_id, most=most))
        if not tools or self.tools.syntax is None:
            return AnswerParser(thought, PlainText())
        parameters = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        calls = CallParser(self.tools.syntax, parameters, types_of(parameters), new_id, most=most, forced=forced)
        return AnswerParser(thought, calls)


class AnswerParser:
    """Text in, events out; however the text is cut into pieces, the events are the same when joined.

    A call inside a thought is no call: what the thought holds is never looked at. satisfied: all calls that were
    wanted are complete, and no more will come out.
    """

    def __init__(self, thought: ThoughtSplitter | None, content: ContentParser) -> None:
        self._thought, self._content = thought, content

    @property
    def satisfied(self) -> bool:
        return self._content.satisfied

    @property
    def inside(self) -> bool:
        """Whether the thought has not ended yet."""
        return self._thought.inside if self._thought else getattr(self._content, "inside", False)

    @property
    def closing_mark(self) -> str:
        """What ends a thought, empty when several things may."""
        return self._thought.closing_mark if self._thought else ""

    def push(self, text: str) -> list[ChatEvent]:
        if self._thought is None:
            return self._content.push(text)
        return self._read(self._thought.push(text))

    def finish(self) -> list[ChatEvent]:
        return [*(self._read(self._thought.finish()) if self._thought else ()), *self._content.finish()]

    def _read(self, events: list[ChatEvent]) -> list[ChatEvent]:
        found: list[ChatEvent] = []
        for event in events:
            found += self._content.push(event.text) if isinstance(event, Text) else [event]
        return found
