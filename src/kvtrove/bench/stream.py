"""A streamed answer as it arrives: server-sent events, and which of its tokens came when.

        bytes          payloads             (time, tokens)
    reads ──> Events ──────────> Transcript ──────────────> arrivals

Tokens are counted by the best of three sources, and the answer says which one it was:

    continuous   every chunk carries `usage` (continuous_usage_stats): exact
    final        one `usage` at the end: its total is spread over the chunks by length; exact where a chunk is a token
    chunks       no `usage` at all: a chunk counts as a token
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"
_SAID = ("content", "reasoning_content", "reasoning", "refusal")  # fields of a delta that are output


class Events:
    """Cuts a byte stream into the payloads of its `data:` lines, wherever the reads were cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now. Comments (keep-alives) and other fields are left out."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


@dataclass
class Transcript:
    """What the server has said so far in one answer. Times are the caller's clock, in seconds.

    chunks: (time, characters) of every chunk that carried output. counted: (time, completion tokens so far) as `usage`
    said. error: the message of an error that came instead of, or inside, the stream.
    """

    text: str = ""
    chunks: list[tuple[float, int]] = field(default_factory=list)
    counted: list[tuple[float, int]] = field(default_factory=list)
    counts_first_chunk: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    complete: bool = False
    error: str | None = None

    def add(self, time: float, payload: bytes) -> None:
        """Take in one event. Raises ValueError for a payload that is no JSON object."""
        if payload == DONE:
            self.complete = True
            return
        event = json.loads(payload)
        if not isinstance(event, dict):
            raise ValueError(f"the event {payload[:80]!r} is no object")
        if event.get("error"):
            self.error = error_message(event)
            return
        said, characters = self._read_choices(event.get("choices") or [])
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._read_usage(time, usage)
            self.counts_first_chunk = self.counts_first_chunk or (said and not self.chunks)
        if said:
            self.chunks.append((time, characters))

    def _read_choices(self, choices: list[dict[str, Any]]) -> tuple[bool, int]:
        """(something was said, its characters)."""
        said, characters = False, 0
        for choice in choices:
            delta = choice.get("delta") or {}
            visible = choice.get("text") or delta.get("content") or ""
            self.text += visible
            parts = [visible, *(str(delta[name]) for name in _SAID[1:] if delta.get(name))]
            if delta.get("tool_calls"):
                parts.append(json.dumps(delta["tool_calls"]))
            characters += sum(map(len, parts))
            said = said or any(parts)
            self.complete = self.complete or choice.get("finish_reason") is not None
        return said, characters

    def _read_usage(self, time: float, usage: dict[str, Any]) -> None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if isinstance(cached, int):
            self.cached_tokens = cached
        if isinstance(usage.get("prompt_tokens"), int):
            self.prompt_tokens = usage["prompt_tokens"]
        if isinstance(usage.get("completion_tokens"), int):
            self.counted.append((time, usage["completion_tokens"]))

    @property
    def source(self) -> str:
        if self.counts_first_chunk and len(self.counted) >= len(self.chunks):
            return "continuous"
        return "final" if self.counted else "chunks"

    def arrivals(self) -> tuple[tuple[float, int], ...]:
        """(time, new tokens), in order, no entry without tokens."""
        if self.source == "continuous":
            return _increments(self.counted)
        if self.source == "chunks":
            return tuple((time, 1) for time, _ in self.chunks)
        return _spread(self.counted[-1][1], self.chunks)


def _increments(counted: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    found, before = [], 0
    for time, total in counted:
        if total > before:
            found.append((time, total - before))
            before = total
    return tuple(found)


def _spread(total: int, chunks: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """`total` tokens over chunks in proportion to their characters, one at least for the first."""
    if len(chunks) == total:
        return tuple((time, 1) for time, _ in chunks)
    characters = max(1, sum(length for _, length in chunks))
    counted, so_far = [], 0
    for time, length in chunks:
        so_far += length
        counted.append((time, max(1, round(total * so_far / characters)) if total else 0))
    return _increments(counted)


def error_message(body: Any) -> str:
    """The message of an error body in OpenAI's shape, or whatever the server wrote instead, in one short line."""
    if isinstance(body, dict):
        error = body.get("error", body.get("detail", body.get("message", body)))
        body = error.get("message", error) if isinstance(error, dict) else error
    return printable(" ".join(str(body).split()))[:300]


def printable(text: str) -> str:
    """`text` of a server as a terminal may show it: without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
