"""GET /health: the one route that needs no key, for load balancers and supervisors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from kvtrove.server.routes.common import ServiceOf

router = APIRouter()


class Health(TypedDict):
    """live: the engine can answer (if not, restart the process). ready: send requests here. draining: shutting down.

    status: ready, degraded (a step has failed and is being repeated without whoever is at fault), draining or dead.
    """

    status: str
    live: bool
    ready: bool
    draining: bool


_UNWELL: dict[int | str, dict[str, Any]] = {
    503: {"model": Health, "description": "Draining, or the engine has stopped."}
}


def _health(service: ServiceOf) -> Health:
    live, draining = service.engine.alive, service.admission.draining
    well = "degraded" if service.engine.degraded else "ready"
    status = "dead" if not live else "draining" if draining else well
    return {"status": status, "live": live, "ready": live and not draining, "draining": draining}


@router.get("/health", responses=_UNWELL)
async def health(service: ServiceOf, response: Response) -> Health:
    """200 while requests are welcome, else 503."""
    state = _health(service)
    response.status_code = 200 if state["ready"] else 503
    return state


@router.get("/health/live", responses=_UNWELL)
async def live(service: ServiceOf, response: Response) -> Health:
    """200 while the engine runs, also when the server drains; 503 calls for a restart."""
    state = _health(service)
    response.status_code = 200 if state["live"] else 503
    return state
