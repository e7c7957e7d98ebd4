"""The application: routes, middleware, and errors in one shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from kvtrove import __version__
from kvtrove.server.auth import Keyring
from kvtrove.server.body import invalid
from kvtrove.server.errors import ApiError, as_api_error, refused
from kvtrove.server.middleware import Bound, Guard, Heads, Identify, state_of
from kvtrove.server.observer import Observers
from kvtrove.server.protocol.common import ErrorBody
from kvtrove.server.routes import (
    adapters,
    admin,
    cache,
    chat,
    checkpoints,
    completions,
    health,
    messages,
    models,
    responses,
    tokenize,
    vectors,
)
from kvtrove.server.routes.common import ERROR_SCHEMA
from kvtrove.server.service import Service
from kvtrove.server.settings import ServerSettings

log = logging.getLogger(__name__)
INNER = (cache, checkpoints, admin, adapters, health)
"""Of the server itself; the others are the APIs that clients know."""
ROUTERS = tuple(module.router for module in (models, chat, completions, responses, messages, vectors, tokenize, *INNER))


class Documented(FastAPI):
    """Its document holds the error that routes refer to (`routes.common.errors`)."""

    def openapi(self) -> dict[str, Any]:
        document, (parent, name) = super().openapi(), ERROR_SCHEMA.rsplit("/", 1)
        schemas = document["components"]["schemas"]
        if name not in schemas:
            error = TypeAdapter(ErrorBody).json_schema(ref_template=f"{parent}/{{model}}", mode="serialization")
            schemas |= error.pop("$defs") | {name: error}
        return document


def create_app(service: Service, keyring: Keyring, more_routers: Iterable[APIRouter] = ()) -> FastAPI:
    """The server as an ASGI application. It starts the engine with the event loop, and stops it with that.

    more_routers: of metrics, reports and whatever else hangs on; their routes are guarded like all others.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = Documented(
        title="KVTrove",
        version=__version__,
        summary="An OpenAI-compatible server on an engine built around its KV cache.",
        lifespan=lifespan,
        middleware=middleware(service.observers, service.settings, keyring),
        root_path=service.settings.root_path,
        docs_url=None,
        redoc_url=None,
        # as they are: `include_router` would build each of them again
        routes=[route for router in (*ROUTERS, *more_routers) for route in router.routes],
    )
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in (ApiError, ValueError, RecursionError):  # RequestError and UnicodeEncodeError are ValueErrors
        app.add_exception_handler(kind, _failed)
    return app


def middleware(observers: Observers, settings: ServerSettings, keyring: Keyring) -> list[Middleware]:
    """Outermost first."""
    origins = list(settings.cors_origins)
    cors = [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-kvtrove-warning"],
        )
    ]
    return [
        Middleware(Identify, observer=observers),
        *(cors if origins else []),
        Middleware(Guard, keyring=keyring),
        Middleware(Bound, limits=settings.limits),
        Middleware(Heads),
    ]


def _answer(request: Request, error: ApiError) -> Response:
    body = error.body
    state_of(request.scope)["error_code"] = body["error"]["code"]
    return JSONResponse(body, error.status, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    known = as_api_error(error)
    if known.status == 500:
        log.error("request %s failed", state_of(request.scope).get("request_id"), exc_info=error)
    return _answer(request, known)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = f"{request.url.path:.200}"
    text = {404: f"there is no route {path}", 405: f"{path} does not take {request.method}"}
    message = text.get(error.status_code, str(error.detail))
    return _answer(request, ApiError(error.status_code, message, headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    """A parameter of the wrong type, or a body that is no JSON (`body.read` reads the others)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(request, refused(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json"))
    return _answer(request, invalid([first]))
