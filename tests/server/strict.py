"""Strict validation against the types of the official clients, which themselves accept almost anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
from pydantic import BaseModel, TypeAdapter

# Fields that the clients' types do not have, and docs/server.md does.
OURS = {"kvtrove", "stop_reason", "reasoning_content", "reasoning", "max_model_len", "param", "code"}


def check(kind: Any, value: Any) -> None:
    """AssertionError or ValidationError unless `value` (parsed JSON) is a `kind`: no field is missing or of another
    type, and none is unknown but OURS.
    """
    model = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    unknown = [where for where in _extras(model, "") if where.rpartition(".")[2] not in OURS]
    assert not unknown, f"fields that {kind} does not have: {unknown}\n{value}"


def _extras(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{where}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for n, one in enumerate(value):
            yield from _extras(one, f"{where}[{n}]")


def event_type(union: Any, event: Any) -> Any:
    """The member of a union of events that has the event's type: a validator would try them all, and name all."""
    members = [one for one in get_args(get_args(union)[0]) if _type_of(one) == event["type"]]
    assert members, f"no event of the client has the type {event['type']}"
    return members[0]


def _type_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def events(answer: httpx.Response) -> list[Any]:
    """The data of a stream's events, each one line of JSON; [DONE] and comments are left out."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
