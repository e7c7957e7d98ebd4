"""The routes of a server of several models: its own, and everything else goes to the model that the request names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse

from kvtrove import __version__
from kvtrove.fleet.child import Child
from kvtrove.fleet.fleet import Fleet
from kvtrove.fleet.metrics import merged
from kvtrove.fleet.proxy import asked_model, forward, json_of, look
from kvtrove.server.app import middleware
from kvtrove.server.auth import Keyring
from kvtrove.server.errors import ApiError, as_api_error
from kvtrove.server.middleware import state_of
from kvtrove.server.observer import Observers
from kvtrove.server.page.router import page_files
from kvtrove.server.routes.common import admin_only
from kvtrove.server.settings import ServerSettings

WATCHED = ("/v1/status", "/v1/cache/reports")
"""What the page and `kvtrove top` ask all the time: neither wakes a model nor keeps it awake."""
ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_app(fleet: Fleet, keyring: Keyring, settings: ServerSettings) -> FastAPI:
    """The ASGI application. It loads what is to be there from the start, and stops every process at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for child in fleet.children.values():
            if child.entry.preload:
                fleet.begin_load(child)
        house = asyncio.create_task(fleet.keep_house())
        yield
        house.cancel()
        await asyncio.gather(house, return_exceptions=True)
        await fleet.stop()

    app = FastAPI(
        title="KVTrove",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        root_path=settings.root_path,
        middleware=middleware(Observers(), settings, keyring),
    )
    app.state.fleet, app.state.created = fleet, int(time.time())
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/health/live", health, methods=["GET"])
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}/{verb}", switch, methods=["POST"], dependencies=[Depends(admin_only)])
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.include_router(page_files())
    app.add_api_route("/{path:path}", anything, methods=ALL, include_in_schema=False)
    for kind in (ApiError, ValueError):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


def _credentials(request: Request) -> dict[str, str]:
    """The key that a request came with, for a question of ours to a model's server."""
    return {name: value for name in ("authorization", "x-api-key") if (value := request.headers.get(name))}


async def health(request: Request, response: Response) -> dict[str, Any]:
    """200 while requests are welcome."""
    draining = _fleet(request).draining
    response.status_code = 503 if draining else 200
    return {"status": "draining" if draining else "ready", "live": True, "ready": not draining, "draining": draining}


def _card(request: Request, name: str, child: Child) -> dict[str, Any]:
    need = _fleet(request).needs[child.entry.name]
    card = {"id": name, "object": "model", "created": request.app.state.created, "owned_by": "kvtrove"}
    card["root"] = child.entry.name
    return card | {
        "state": child.state,
        "memory_bytes": need.total,
        "kv_bytes": need.kv,
        "in_flight": child.in_flight,
        "load_seconds": None if child.load_seconds is None else round(child.load_seconds, 2),
        "error": child.error or None,
    }


async def models(request: Request) -> dict[str, Any]:
    """All names that requests may use, loaded or not, and the memory that each takes."""
    fleet = _fleet(request)
    named = [(name, child) for child in fleet.children.values() for name in (child.entry.name, *child.entry.aliases)]
    data = [_card(request, name, child) for name, child in named]
    ready = [child for child in fleet.children.values() if child.state == "ready"]
    told = await asyncio.gather(*(json_of(child, "/v1/models", _credentials(request)) for child in ready))
    for child, cards in zip(ready, told, strict=True):
        name = child.entry.name
        adapters = [card["id"] for card in (cards or {}).get("data", ()) if "parent" in card]
        data += [_card(request, f"{name}:{adapter}", child) | {"parent": name} for adapter in adapters]
    return {"object": "list", "data": data, "budget_bytes": fleet.budget, "used_bytes": fleet.used}


async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them; what its server says of it too, when it is loaded."""
    child = _fleet(request).find(name)
    told = None
    if child.state == "ready":
        told = await json_of(child, f"/v1/models/{child.entry.name}", _credentials(request))
    return (told or {}) | _card(request, name, child)


async def switch(name: str, verb: Literal["load", "unload", "sleep"], request: Request) -> dict[str, Any]:
    """load: now, whether or not somebody asks. sleep: until a request comes. unload: until it is loaded again."""
    fleet = _fleet(request)
    child = fleet.find(name)
    if verb == "load":
        if child.state in ("unloaded", "failed"):
            child.state = "asleep"
        await fleet.load(child)
    else:
        await fleet.put_away(child, "unloaded" if verb == "unload" else "asleep")
    return _card(request, name, child)


async def metrics(request: Request) -> Response:
    """Those of all models that are loaded, and which are."""
    fleet = _fleet(request)
    ready = [child for child in fleet.children.values() if child.state == "ready"]
    credentials = _credentials(request)
    answers = await asyncio.gather(
        *(child.client.get("/metrics", headers=credentials, timeout=5) for child in ready), return_exceptions=True
    )
    texts = {
        child.entry.name: answer.text
        for child, answer in zip(ready, answers, strict=True)
        if not isinstance(answer, BaseException) and answer.status_code == 200
    }
    own = ["# HELP kvtrove_model_loaded 1 while the model is ready.", "# TYPE kvtrove_model_loaded gauge"]
    own += [f'kvtrove_model_loaded{{model="{n}"}} {int(c.state == "ready")}' for n, c in fleet.children.items()]
    own += [
        "# HELP kvtrove_model_evictions_total Models put to sleep to make room for others.",
        "# TYPE kvtrove_model_evictions_total counter",
        f"kvtrove_model_evictions_total {fleet.evictions}",
    ]
    return PlainTextResponse("\n".join(own) + "\n" + merged(texts))


async def anything(path: str, request: Request) -> Response:
    """To the model that the request names, or to the first one; who only looks is told of the first that is loaded."""
    fleet, body = _fleet(request), await request.body()
    name, stream = await asked_model(request, body)
    if request.method == "GET" and request.url.path.removeprefix(request.scope["root_path"]).startswith(WATCHED):
        ready = (child.entry.name for child in fleet.children.values() if child.state == "ready")
        return await look(request, fleet, fleet.find(name or next(ready, None)))
    return await forward(request, body, fleet, fleet.find(name), stream)


async def _failed(request: Request, error: Exception) -> Response:
    known = as_api_error(error)
    state_of(request.scope)["error_code"] = known.body["error"]["code"]
    return JSONResponse(known.body, known.status, known.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _failed(request, ApiError(error.status_code, str(error.detail), headers=error.headers))
