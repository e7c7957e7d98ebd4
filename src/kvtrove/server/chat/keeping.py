"""What a request wants to be kept: the words of two APIs become soft pins.

| words | prefix | seconds |
|---|---|---|
| `cache_control` of Anthropic, behind a block | up to that message | 300, or 3600 with "1h" |
| `prompt_cache_breakpoint` of OpenAI, in a part | up to that message | `prompt_cache_options.ttl`, else 1800 |
| `prompt_cache_options.ttl` | all, and the answer, unless `mode` is explicit | those |
| `prompt_cache_retention` "24h" | all, and the answer | 86400 |
| `prompt_cache_key` | all, and the answer | 300 |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kvtrove.request import RequestError, SoftPin
from kvtrove.server.chat.conversation import CacheMark
from kvtrove.server.protocol.common import CacheControl, CacheFields

EPHEMERAL = {None: 300.0, "5m": 300.0, "1h": 3600.0}
OPENAI_SECONDS, KEY_SECONDS, DAY = 1800.0, 300.0, 86_400.0
MOST_MARKS = 4  # as in both APIs
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def soft_pins(body: CacheFields, marks: Sequence[CacheMark] = ()) -> list[SoftPin]:
    """Longest prefixes last. RequestError names the field that cannot be read."""
    options = body.prompt_cache_options
    seconds = None if options is None or options.ttl is None else ttl_seconds(options.ttl)
    if body.prompt_cache_retention == "24h" and seconds is None:
        seconds = DAY
    pins = [SoftPin(mark.seconds or seconds or OPENAI_SECONDS, behind=mark.behind) for mark in marks]
    if options is not None and options.mode == "explicit":
        return pins
    if seconds is None and body.prompt_cache_key:
        seconds = KEY_SECONDS
    return pins if seconds is None else [*pins, SoftPin(seconds)]


def ttl_seconds(ttl: str | float) -> float:
    """Seconds of "30m" or of a number, at most a day."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd]?)", ttl) if isinstance(ttl, str) else None
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else ttl if isinstance(ttl, float) else 0.0
    if not 1 <= seconds <= DAY:
        field = "prompt_cache_options.ttl"
        raise RequestError(f"{field}: {ttl!r:.40} is no time from 1s to 24h; write for example 30m", field)
    return seconds


class Marks:
    """Collects the marks of a conversation, while its messages are read. param: what an error names."""

    def __init__(self, param: str) -> None:
        self._param = param
        self._found: list[tuple[int, float | None]] = []

    def openai(self, parts: Any, num_messages: int) -> None:
        """parts: of one message, whose end is message `num_messages` of the conversation."""
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and part.get("prompt_cache_breakpoint"):
                self._add(num_messages, None)

    def anthropic(self, control: CacheControl | None, num_messages: int) -> None:
        if control is not None:
            self._add(num_messages, EPHEMERAL[control.ttl])

    def of(self, num_messages: int) -> tuple[CacheMark, ...]:
        """Of a conversation of so many messages."""
        return tuple(CacheMark(num_messages - at, seconds) for at, seconds in self._found)

    def _add(self, at: int, seconds: float | None) -> None:
        self._found.append((at, seconds))
        if len(self._found) > MOST_MARKS:
            raise RequestError(f"{self._param}: more than {MOST_MARKS} places to keep are marked", self._param)
