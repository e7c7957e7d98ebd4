"""Reads one tool call, `{"name": ..., "arguments": {...}}`, as its characters arrive."""

from __future__ import annotations

import json

NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")
OTHER_KEYS = ("id", "type", "tool_call_id", "index")


class CallScanner:
    """What is known of a call so far.

        {"name": "f", "arguments": {"a": [1, 2]}}
        ^ depth 1                  ^ depth 2      the value of `arguments` is passed on as it was written

    name: once its value has ended. arguments: text of the arguments so far, without the space around it; what is no
    object is known once it has ended. done: the object has ended. broken: what was read is no object of this kind;
    nothing more is read then. only_calls: a key that calls do not have breaks it.
    """

    def __init__(self, only_calls: bool = False) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._only_calls = only_calls
        self._depth = 0
        self._key: str | None = None  # whose value is being read
        self._text: list[str] = []  # characters of the key, or of its value
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """Read characters; returns how many, fewer than all when the object ends among them."""
        for at, character in enumerate(text):
            if self.done or self.broken:
                return at
            self._read(character)
        if self._key in ARGUMENT_KEYS and self._text and self._text[0] == "{":
            self.arguments = "".join(self._text)
        return len(text)

    def _read(self, c: str) -> None:
        if self._in_string:
            self._text.append(c)
            self._in_string = self._escaped or c != '"'
            self._escaped = c == "\\" and not self._escaped
        elif self._depth == 0:
            self._depth = int(c == "{")
            self.broken = not (c == "{" or c.isspace())
        elif self._depth == 1 and c in ":,}":
            self._punctuate(c)
        elif self._depth > 1 or not c.isspace():
            self._depth += (c in "{[") - (c in "}]")
            self._in_string = c == '"'
            self._text.append(c)

    def _punctuate(self, c: str) -> None:
        """A key or a value has ended."""
        text = "".join(self._text)
        try:
            if c == ":" and self._key is None:
                self._key = self._string(text)
                if self._only_calls and self._key not in (*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS):
                    raise ValueError(f"no call has the key {self._key!r}")
            elif c != ":" and self._key is not None:
                self._end_value(self._key, text)
                self._key = None
            elif c != "}" or text:
                raise ValueError(f"unexpected {c!r}")
        except ValueError:
            self.broken = True
        self._text = []
        self.done = c == "}" and not self.broken

    def _end_value(self, key: str, text: str) -> None:
        if key in NAME_KEYS:
            self.name = self._string(text)
        elif key in ARGUMENT_KEYS:  # some models write the object once more as a string
            value = self._string(text) if text.startswith('"') else text
            self.arguments = "{}" if value.strip() in ("", "null", "None") else value

    @staticmethod
    def _string(text: str) -> str:
        value = json.loads(text)
        if not isinstance(value, str):
            raise ValueError(f"expected a string, found {text}")
        return value


class ObjectScanner:
    """Where a JSON object ends whose first `{` is the next character."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """Read characters; returns how many, fewer than all when the object ends among them."""
        for at, c in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            else:
                self._depth += (c in "{[") - (c in "}]")
                self._in_string = c == '"'
                self.done = self._depth <= 0
                if self.done:
                    return at + 1
        return len(text)
