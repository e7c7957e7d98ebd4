"""What administrators may do: POST /v1/cache/clear, POST /v1/log_level."""

from __future__ import annotations

import logging
from typing import Literal

from fastapi import APIRouter, Depends
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import Body
from kvtrove.server.routes.common import ANSWERS, ServiceOf, admin_only, errors

router = APIRouter(dependencies=[Depends(admin_only)])
log = logging.getLogger(__name__)


class Cleared(TypedDict):
    blocks: int


class LogLevel(Body):
    """Of the server's own log, until it is set again or the server ends."""

    level: Literal["debug", "info", "warning", "error"]


class LogLevelSet(TypedDict):
    level: str


@router.post("/v1/cache/clear", responses=errors(401, 403, 500, 503))
async def clear(service: ServiceOf) -> Cleared:
    """Forget every cached block that no request uses."""
    blocks = await service.engine.call(lambda engine: engine.reset_prefix_cache())
    log.warning("the prefix cache was cleared: %d blocks", blocks)
    return {"blocks": blocks}


@router.post("/v1/log_level", responses=errors(*ANSWERS))
async def log_level(body: LogLevel) -> LogLevelSet:
    """How much the server logs."""
    logging.getLogger("kvtrove").setLevel(body.level.upper())
    return {"level": body.level}
