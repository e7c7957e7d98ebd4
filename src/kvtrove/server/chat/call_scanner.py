"""Reads one tool call, `{"name": ..., "arguments": {...}}`, as its characters arrive."""

from __future__ import annotations

import json

ARGUMENT_KEYS = ("arguments", "parameters")


class CallScanner:
    """What is known of a call so far.

        {"name": "f", "arguments": {"a": [1, 2]}}
        ^ depth 1                  ^ depth 2      the value of `arguments` is passed on as it was written

    name: once its value has ended. arguments: text of the arguments so far, without the space around it.
    done: the object has ended. broken: what was read is no object of this kind; nothing more is read then.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._depth = 0
        self._key: str | None = None  # whose value is being read
        self._text = ""  # of the key, or of its value
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """Read characters; returns how many, fewer than all when the object ends among them."""
        for at, character in enumerate(text):
            if self.done or self.broken:
                return at
            self._read(character)
        return len(text)

    def _read(self, c: str) -> None:
        if self._in_string:
            self._append(c)
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
            self._append(c)

    def _append(self, c: str) -> None:
        self._text += c
        if self._key in ARGUMENT_KEYS and not self._text.startswith('"'):
            self.arguments = self._text

    def _punctuate(self, c: str) -> None:
        """A key or a value has ended."""
        try:
            if c == ":" and self._key is None:
                self._key = self._string(self._text)
            elif c != ":" and self._key is not None:
                self._end_value(self._key)
                self._key = None
            elif c != "}" or self._text:
                raise ValueError(f"unexpected {c!r}")
        except ValueError:
            self.broken = True
        self._text = ""
        self.done = c == "}" and not self.broken

    def _end_value(self, key: str) -> None:
        if key == "name":
            self.name = self._string(self._text)
        elif key in ARGUMENT_KEYS:  # some models write the object once more as a string
            self.arguments = self._string(self._text) if self._text.startswith('"') else self._text

    @staticmethod
    def _string(text: str) -> str:
        value = json.loads(text)
        if not isinstance(value, str):
            raise ValueError(f"expected a string, found {text}")
        return value
