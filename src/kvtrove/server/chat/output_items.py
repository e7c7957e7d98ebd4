"""The output of a Responses answer, as it grows: thoughts, messages, function calls, and the events about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Reasoning, Text

Event = dict[str, Any]


class OutputItems:
    """`items` holds what has been written; `push` and `end` yield the events of a stream.

    namespaces: of the functions that have one, its name and their own, by the name that the model knows.
    """

    def __init__(self, key: str, namespaces: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._key, self._namespaces = key, namespaces or {}
        self.items: list[dict[str, Any]] = []

    def push(self, event: ChatEvent, logprobs: Sequence[Mapping[str, Any]] = ()) -> Iterator[Event]:
        """logprobs: entries of the tokens that a text is made of."""
        match event:
            case Reasoning(text):
                if not self._open("reasoning"):
                    yield from self._begin_reasoning()
                self.items[-1]["content"][0]["text"] += text
                yield self._about("response.reasoning_text.delta", content_index=0, delta=text)
            case Text(text):
                if not self._open("message"):
                    yield from self._begin_message()
                part = self.items[-1]["content"][0]
                part["text"] += text
                part["logprobs"] += logprobs
                yield self._about(
                    "response.output_text.delta", content_index=0, delta=text, logprobs=_without_bytes(logprobs)
                )
            case CallBegins(_, call_id, name):
                yield from self.end()
                item_id = f"fc_{self._key}_{len(self.items)}"
                namespace, own = self._namespaces.get(name, (None, name))
                call = {"type": "function_call", "id": item_id, "call_id": call_id, "name": own, "arguments": ""}
                yield from self._begin(call | ({} if namespace is None else {"namespace": namespace}))
            case CallArguments(_, text):
                self.items[-1]["arguments"] += text
                yield self._about("response.function_call_arguments.delta", delta=text)

    def end(self, status: str = "completed") -> Iterator[Event]:
        """The item being written, if any, is complete, or as complete as it will be."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            told = _without_bytes(part["logprobs"])
            yield self._about("response.output_text.done", content_index=0, text=part["text"], logprobs=told)
            yield self._about("response.content_part.done", content_index=0, part=_part(part))
        elif item["type"] == "reasoning":
            text = item["content"][0]["text"]
            yield self._about("response.reasoning_text.done", content_index=0, text=text)
            yield self._about("response.content_part.done", content_index=0, part=dict(item["content"][0]))
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._about("response.function_call_arguments.done", **done)
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": _copy(item)}

    def _open(self, kind: str) -> bool:
        return bool(self.items) and (self.items[-1]["type"], self.items[-1]["status"]) == (kind, "in_progress")

    def _begin_message(self) -> Iterator[Event]:
        yield from self.end()
        item_id = f"msg_{self._key}_{len(self.items)}"
        yield from self._begin({"type": "message", "id": item_id, "role": "assistant", "content": []})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items[-1]["content"].append(part)
        yield self._about("response.content_part.added", content_index=0, part=_part(part))

    def _begin_reasoning(self) -> Iterator[Event]:
        yield from self.end()
        item_id = f"rs_{self._key}_{len(self.items)}"
        yield from self._begin({"type": "reasoning", "id": item_id, "summary": [], "content": []})
        part = {"type": "reasoning_text", "text": ""}
        self.items[-1]["content"].append(part)
        yield self._about("response.content_part.added", content_index=0, part=dict(part))

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self.items.append(item | {"status": "in_progress"})
        added = _copy(self.items[-1])
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": added}

    def _about(self, kind: str, **facts: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **facts}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """As it is now: the item itself goes on growing."""
    return {name: [_part(part) for part in value] if name == "content" else value for name, value in item.items()}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if name == "logprobs" else value for name, value in part.items()}


def _without_bytes(logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As events have them."""
    short = ("token", "logprob")
    return [
        {name: entry[name] for name in short}
        | {"top_logprobs": [{name: other[name] for name in short} for other in entry["top_logprobs"]]}
        for entry in logprobs
    ]
