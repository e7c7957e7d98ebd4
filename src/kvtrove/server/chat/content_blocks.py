"""The content blocks of an Anthropic message, and the events that tell how they grow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Reasoning, Text


def blocks_of(events: Sequence[ChatEvent]) -> list[dict[str, Any]]:
    """The content blocks that a stream of events makes."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        match event:
            case Reasoning(text):
                if not blocks or blocks[-1]["type"] != "thinking":
                    blocks.append({"type": "thinking", "thinking": "", "signature": ""})
                blocks[-1]["thinking"] += text
            case Text(text):
                if not blocks or blocks[-1]["type"] != "text":
                    blocks.append({"type": "text", "text": ""})
                blocks[-1]["text"] += text
            case CallBegins(_, call_id, name):
                blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": ""})
            case CallArguments(_, text):
                blocks[-1]["input"] += text
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = _parsed(block["input"])
    return blocks


def _parsed(arguments: str) -> Any:
    """Arguments as an object; what is none, or was cut short, keeps its text."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"_incomplete": arguments} if arguments.strip() else {}


class BlockStream:
    """Content blocks as events: each begins, grows and stops before the next begins."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: str | None = None

    def push(self, event: ChatEvent) -> Iterator[dict[str, Any]]:
        match event:
            case Reasoning(text):
                if self._kind != "thinking":
                    yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Text(text):
                if self._kind != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case CallBegins(_, call_id, name):
                yield from self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case CallArguments(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def end(self) -> Iterator[dict[str, Any]]:
        if self._kind is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._kind = None

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.end()
        self._index, self._kind = self._index + 1, block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}
