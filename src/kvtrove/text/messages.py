"""The conversation that a chat template sees: checked, and rebuilt from plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvtrove.request import RequestError

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names for the same thing; templates read the first


def read_messages(messages: Any, keep_null_content: bool = False) -> list[Message]:
    """A copy of the conversation for a template. RequestError names the message and the field that are malformed.

    As in transformers, fields that are None are left out, and a message's reasoning is found under every usual name.
    keep_null_content: content that is None stays as it is.
    """
    _check(isinstance(messages, Sequence) and not isinstance(messages, str), "messages", "a list of messages", messages)
    if not messages:
        raise RequestError("messages: the conversation is empty; give at least one message", "messages")
    read = [_read_message(message, f"messages[{n}]") for n, message in enumerate(messages)]
    if keep_null_content:
        for found, given in zip(read, messages, strict=True):
            if "content" in given:
                found.setdefault("content", None)
    return read


def _read_message(message: Any, where: str) -> Message:
    _check(isinstance(message, Mapping), where, "an object with role and content", message)
    read = {key: value for key, value in plain(message, where).items() if value is not None}
    _check(isinstance(read.get("role"), str) and read["role"], f"{where}.role", "a name such as user", read.get("role"))
    content = read.get("content")
    if isinstance(content, list):
        for n, part in enumerate(content):
            _check_part(part, f"{where}.content[{n}]")
    elif content is not None or len(read) == 1:  # a call of a tool, for example, needs no content
        _check(isinstance(content, str), f"{where}.content", "a string or a list of parts", content)
    reasoning = next((read[name] for name in REASONING_FIELDS if name in read), None)
    return read if reasoning is None else {"thinking": reasoning, **read, "reasoning_content": reasoning}


def _check_part(part: Any, where: str) -> None:
    _check(isinstance(part, Mapping), where, 'an object such as {"type": "text", "text": ...}', part)
    _check(isinstance(part.get("type"), str), f"{where}.type", "a string such as text", part.get("type"))
    if part["type"] == "text":
        _check(isinstance(part.get("text"), str), f"{where}.text", "a string", part.get("text"))


def read_objects(values: Any, name: str) -> list[dict[str, Any]] | None:
    """Tools or documents: a list of objects, or None. RequestError names the entry that is something else."""
    if values is None:
        return None
    _check(isinstance(values, Sequence) and not isinstance(values, str), name, "a list of objects", values)
    for n, value in enumerate(values):
        _check(isinstance(value, Mapping), f"{name}[{n}]", "an object", value)
    copied: list[dict[str, Any]] = plain(list(values), name)
    return copied


def plain(value: Any, where: str) -> Any:
    """A deep copy made of JSON's types alone: templates get no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            _check(isinstance(key, str), where, "an object whose keys are strings", key)
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{n}]") for n, item in enumerate(value)]
    for kind in (str, int, float):
        if isinstance(value, kind):  # an enum or a number of another library
            return kind(value)
    raise RequestError(f"{where}: {type(value).__name__} is not a JSON value", where.split("[")[0].split(".")[0])


def _check(right: Any, where: str, expected: str, found: Any) -> None:
    if not right:
        shown = "missing" if found is None else f"{found!r:.60}"
        raise RequestError(f"{where}: expected {expected}, found {shown}", where.split("[")[0].split(".")[0])
