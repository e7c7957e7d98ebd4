"""What an answer consists of, as it is found while the model writes. All APIs are translations of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thought that comes before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """Tool call number `index` of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call `index`: JSON text, an object unless the model wrote something else."""

    index: int
    text: str


ChatEvent = Reasoning | Text | CallBegins | CallArguments


def merged(events: list[ChatEvent]) -> list[ChatEvent]:
    """The same events with neighbours of one kind joined."""
    found: list[ChatEvent] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            found[-1] = CallArguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
