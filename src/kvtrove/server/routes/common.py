"""What every route declares."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from kvtrove.server.chat.conversation import Conversation
from kvtrove.server.errors import ApiError
from kvtrove.server.job import Job
from kvtrove.server.protocol.common import StreamOptions, Usage
from kvtrove.server.service import Service
from kvtrove.server.volatile import moved_back


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


ServiceOf = Annotated[Service, Depends(service_of)]


def admin_only(request: Request) -> None:
    """A dependency of routes, or of whole routers, that only administrators may call. ApiError 403 for others."""
    if not request.state.tenant.admin:
        remedy = "ask with the key of an administrator: KVTROVE_ADMIN_KEY, or admin = true in the key file"
        raise ApiError(403, f"{request.url.path} is for administrators; {remedy}", code="admin_only")


class UsageInStream:
    """`stream_options`: include_usage puts the counts into a last chunk, continuous_usage_stats into every one."""

    def __init__(self, job: Job, options: StreamOptions | None) -> None:
        self._job = job
        self._continuous = bool(options and options.continuous_usage_stats)
        self._wanted = bool(options and options.include_usage)

    def of_chunk(self) -> dict[str, Usage | None]:
        """What a chunk of text carries."""
        if self._continuous:
            return {"usage": self._job.usage()}
        return {"usage": None} if self._wanted else {}

    def at_end(self) -> dict[str, Usage]:
        """What the chunk behind all text carries."""
        return {"usage": self._job.usage()} if self._wanted else {}


def settled(conversation: Conversation, service: Service, wanted: bool | None) -> tuple[Conversation, dict[str, Any]]:
    """The conversation with its volatile head moved back, if the request or else the server asks for it, and a note."""
    if not (service.settings.stable_prefix if wanted is None else wanted):
        return conversation, {}
    messages, moved = moved_back(conversation.messages)
    return replace(conversation, messages=messages), ({"moved_lines": moved} if moved else {})


def notes_of(job: Job) -> dict[str, Any]:
    """The job is done: the `kvtrove` object of its answer, if there is anything to say."""
    notes = job.finish()
    return {"kvtrove": notes} if notes else {}


_MEANINGS = {
    400: "The request cannot be served as it stands; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The key may not do this.",
    404: "There is no such thing.",
    408: "It took too long.",
    413: "The body is too large.",
    429: "Too much to do; come back after Retry-After seconds.",
    500: "The engine failed.",
    503: "The server is shutting down, or the engine has stopped.",
}
GENERATES = (400, 401, 403, 404, 408, 413, 429, 500, 503)
ANSWERS = (400, 401, 403, 413, 503)


ERROR_SCHEMA = "#/components/schemas/ErrorBody"
"""Where the app's document describes an error, once. A model in every route would be compiled for each of them."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route."""
    content = {"application/json": {"schema": {"$ref": ERROR_SCHEMA}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}
