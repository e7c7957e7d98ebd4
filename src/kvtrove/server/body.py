"""Bodies of requests: read, checked and turned into their models in bounded time, large ones off the event loop.

    bytes -- scan: how deep, how many objects and lists, how many members -- parse -- validate, up to the first error

Parsing and validating hold the interpreter and cannot be interrupted, so what a body may hold is bounded before: the
scan runs in numpy, which lets other threads work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from kvtrove.server.errors import ApiError, refused
from kvtrove.server.json_pieces import masked, read_json, structure
from kvtrove.server.text_pool import BODY_SIZE, LARGE

MAX_CONTAINERS = 20_000  # objects and lists
MAX_MEMBERS = 100_000  # names in all objects
_ALTERNATIVE = re.compile(r"[A-Z]|.*\[|(str|int|float|bool|dict|list)$")  # pydantic's name for one type of several


def scan(body: bytes) -> tuple[int, int, int]:
    """(depth, number of objects and lists, number of members) of a JSON text, as far as it is one.

    Up to its first error a parser sees the same, so what it does until then is bounded by these numbers too.
    """
    deepest, containers, members = 0, 0, 0
    for _, part, inside, levels in structure(masked(body)):
        deepest = max(deepest, int(levels.max()))
        containers += int(np.count_nonzero(((part | 0x20) == ord("{")) & ~inside))
        members += int(np.count_nonzero((part == ord(":")) & ~inside))
    return deepest, containers, members


def parse(body: bytes, max_nesting: int) -> Any:
    """The value of a JSON text. ApiError when it is none, nests deeper than `max_nesting`, or holds too much."""
    if body.count(b"[") + body.count(b"{") > max_nesting or len(body) >= LARGE:
        depth, containers, members = scan(body)
        if depth > max_nesting:
            text = f"the body nests arrays and objects {depth} deep; at most {max_nesting} levels are allowed"
            raise refused(text, code="nested_too_deep")
        if containers > MAX_CONTAINERS:
            text = f"the body holds {containers} objects and lists; at most {MAX_CONTAINERS} are read"
            raise refused(text, code="too_many_values")
        if members > MAX_MEMBERS:
            raise refused(f"the body holds {members} names; at most {MAX_MEMBERS} are read", code="too_many_values")
    try:
        return read_json(body)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> ApiError:
    return refused(f"the body is not JSON: {error}", code="invalid_json")


def read(body: bytes, model: type[BaseModel], max_nesting: int) -> BaseModel:
    """The body as `model`. ApiError that names the first field that is wrong, and what it should be."""
    value = parse(body, max_nesting)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors, as clients see it."""
    first = errors[0]
    where = [part for part in first["loc"] if part != "body" and not _ALTERNATIVE.match(str(part))]
    param = str(where[0]) if where else None
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    message = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}; send JSON as application/json"
    return refused(message[:1000], param, "missing_field" if first["type"] == "missing" else "invalid_type")


class _ReadRequest(Request):
    """A request whose body has been read: FastAPI takes a model's instance as it is."""

    value: BaseModel

    async def json(self) -> Any:
        return self.value


class BodyRoute(APIRoute):
    """A route whose body goes through `read`. Routes without one are as usual."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model = self.body_field and self.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return handle

        async def read_first(request: Request) -> Response:
            body = await request.body()
            if not body or not _says_json(request.headers.get("content-type", "")):
                return await handle(request)  # FastAPI knows what to say
            BODY_SIZE.set(len(body))
            known = _ReadRequest(request.scope, request.receive)
            known._body = body
            service = request.app.state.service
            arguments = body, model, service.limits.max_nesting
            known.value = read(*arguments) if len(body) < LARGE else await service.in_pool(read, *arguments)
            return await handle(known)

        return read_first


def _says_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
