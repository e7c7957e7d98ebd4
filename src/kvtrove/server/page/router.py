"""GET / and its files, and GET /v1/status, from which the page and `kvtrove top` draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from kvtrove import __version__
from kvtrove.server.activity import Activity, InFlight, Sample, TenantShare
from kvtrove.server.auth import Tenant
from kvtrove.server.middleware import PAGE_FILES
from kvtrove.server.routes.common import ServiceOf, errors

if TYPE_CHECKING:
    from kvtrove.engine import Engine

FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Blocks(TypedDict):
    """Of the cache: used by requests or pins, cached (reusable), free. tokens: that a block holds."""

    total: int
    used: int
    cached: int
    free: int
    tokens: int
    evictions: int
    eviction_age: float | None


class Memory(TypedDict):
    """Bytes, as the ledger of the start had them."""

    total: int
    weights: int
    kv: int
    activations: int
    reserve: int
    free: int


class Status(TypedDict):
    """tenants, in_flight: the caller's own; everybody's for an administrator. uptime: seconds."""

    object: Literal["status"]
    version: str
    model: str
    context: int
    cache: str
    uptime: float
    state: str
    running: int
    waiting: int
    memory: Memory
    blocks: Blocks
    history: list[Sample]
    period: float
    tenants: list[TenantShare]
    in_flight: list[InFlight]


def page_files() -> APIRouter:
    """GET / and what the page loads."""
    router = APIRouter()

    def file_route(name: str) -> None:
        path = FOLDER / name

        async def send() -> Response:
            return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=HEADERS)

        router.add_api_route(f"/page/{name}" if name != "index.html" else "/", send, include_in_schema=False)

    for name in PAGE_FILES:
        file_route(name)
    return router


def page_router(activity: Activity, engine: Engine) -> APIRouter:
    router = page_files()
    ledger = engine.ledger
    memory: Memory = {
        "total": ledger.total,
        "weights": ledger.weights,
        "kv": ledger.kv,
        "activations": ledger.activations,
        "reserve": ledger.reserve,
        "free": max(0, ledger.free),
    }

    @router.get("/v1/status", responses=errors(401, 403, 503))
    async def status(request: Request, service: ServiceOf) -> Status:
        """What the server is doing, and did in the last ten minutes."""
        tenant: Tenant = request.state.tenant
        stats, live = service.engine.stats, service.engine.alive
        kv = stats.kv
        return {
            "object": "status",
            "version": __version__,
            "model": service.model_name,
            "context": service.max_model_len,
            "cache": service.config.cache,
            "uptime": round(activity.clock() - activity.started, 1),
            "state": "dead" if not live else "draining" if service.admission.draining else "ready",
            "running": stats.num_running,
            "waiting": service.engine.num_waiting,
            "memory": memory,
            "blocks": {
                "total": kv.num_blocks,
                "used": kv.used,
                "cached": kv.cached,
                "free": kv.free,
                "tokens": service.config.block_size,
                "evictions": kv.evictions,
                "eviction_age": kv.eviction_age,
            },
            "history": activity.history(),
            "period": 5.0,
            "tenants": activity.tenants(tenant),
            "in_flight": activity.in_flight(tenant),
        }

    return router
