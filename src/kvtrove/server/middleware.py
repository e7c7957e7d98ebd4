"""What happens to every request before a route sees it, as plain ASGI. Outermost first:

Identify    x-request-id on every answer, one access-log line, unexpected exceptions become a 500 in our shape
(CORS)      only when asked for
Guard       API keys, and host names where there are none
Bound       size of the body, and the time in which it must arrive
Heads       HEAD is answered like GET, without the body
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtrove.server.auth import Keyring, Tenant
from kvtrove.server.errors import ApiError, as_api_error
from kvtrove.server.observer import Observer
from kvtrove.server.settings import Limits, is_loopback

log = logging.getLogger("kvtrove.server.access")
PASSED_OVER = 16  # times the largest body that are read of one that is too large
PASSING_SECONDS = 5.0  # for that
PAGE_FILES = ("index.html", "app.js", "style.css", "icon.svg")
OPEN_PATHS = ("/health", "/health/live", "/", *(f"/page/{name}" for name in PAGE_FILES))
"""Need no key. The page's files hold nothing of anybody's; what it shows comes by guarded routes."""
QUIET_PATHS = (*OPEN_PATHS, "/metrics", "/v1/status", "/v1/cache/reports", "/v1/models")
"""What programs ask again and again: logged for debugging only."""

_SANE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def state_of(scope: Scope) -> MutableMapping[str, Any]:
    """`request.state` as a dictionary: request_id, arrival_time, tenant."""
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


def path_of(scope: Scope) -> str:
    """The path as the routes know it: without the `root_path` that a proxy may leave in front."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    state_of(scope)["error_code"] = error.body["error"]["code"]
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


class Identify:
    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self.app, self.observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        state, start = state_of(scope), time.monotonic()
        own = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = own if _SANE_ID.fullmatch(own) else f"req-{uuid.uuid4().hex}"
        state["arrival_time"] = start
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except Exception as error:
            log.exception("request %s failed", state["request_id"])
            if not status:
                await send_error(as_api_error(error), scope, receive, send_marked)
        finally:
            self._log(scope, status, time.monotonic() - start)
            if status >= 400:
                route = getattr(scope.get("route"), "path", "")
                self.observer.on_error(route, status, state.get("error_code", ""))

    @staticmethod
    def _log(scope: Scope, status: int, seconds: float) -> None:
        state = state_of(scope)
        tenant = state.get("tenant")
        facts = {
            "request_id": state["request_id"],
            "method": scope["method"],
            "path": path_of(scope),
            "status": status,
            "seconds": round(seconds, 4),
            "tenant": tenant.name if isinstance(tenant, Tenant) else None,
        }
        text = "%(method)s %(path)s %(status)d in %(seconds).3f s"
        if done := state["job"].facts() if "job" in state else {}:
            facts |= done
            text += ": %(prompt_tokens)d prompt tokens, %(reused_tokens)d reused, %(output_tokens)d out"
            text += "" if done["ttft"] is None else ", first after %(ttft).3f s"
        quiet = path_of(scope) in QUIET_PATHS and status < 400
        log.log(logging.DEBUG if quiet else logging.INFO, text, facts, extra={"facts": facts})


class Guard:
    """Keys open every route but /health. Without keys the server is on loopback, and only loopback names may ask:
    a web page that rebinds its own name to 127.0.0.1 sends that name as Host.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self.app, self.keyring = app, keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in OPEN_PATHS:
            return await self.app(scope, receive, send)
        try:
            state_of(scope)["tenant"] = self._tenant(Headers(scope=scope))
        except ApiError as error:
            return await send_error(error, scope, receive, send)
        await self.app(scope, receive, send)

    def _tenant(self, headers: Headers) -> Tenant:
        if not self.keyring.guarded and not is_loopback(_hostname(headers.get("host", ""))):
            raise ApiError(403, "without API keys only this machine may ask, by a loopback name such as 127.0.0.1")
        tenant = self.keyring.tenant(_presented_key(headers))
        if tenant is None:
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return tenant


def _hostname(host: str) -> str:
    """The name in a Host header, without port."""
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _presented_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


class Bound:
    """Refuses bodies that are too large (413) or too slow (408), and reads the others whole before a route runs."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            return await send_error(error, scope, receive, send)
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None when the client has left."""
        most = self.limits.max_body_bytes
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            text = "the body has two lengths: send either content-length or transfer-encoding"
            raise ApiError(400, text, code="two_lengths", headers={"connection": "close"})
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > most:
            if "expect" not in headers:
                await self._pass_over(receive)
            raise _too_large(most)
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.idle_timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > most:
                        if more:
                            await self._pass_over(receive)
                        raise _too_large(most)
        except TimeoutError:
            text = f"the body did not arrive within {self.limits.idle_timeout:g} s"
            raise ApiError(408, text, code="body_timeout", headers={"connection": "close"}) from None
        return b"".join(parts)

    async def _pass_over(self, receive: Receive) -> None:
        """Read what is sent, and forget it: a client that is cut off while it sends never reads the answer."""
        left, more = PASSED_OVER * self.limits.max_body_bytes, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(PASSING_SECONDS, self.limits.idle_timeout)):
                while more and left > 0:
                    message = await receive()
                    more = message["type"] != "http.disconnect" and message.get("more_body", False)
                    left -= len(message.get("body", b""))


class Heads:
    """Answers HEAD wherever GET is answered: probes and load balancers ask so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large", headers={"connection": "close"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body first and then whatever the connection says (that is, the disconnect)."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
