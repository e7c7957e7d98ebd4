"""GET /v1/cache/memory: where the memory went."""

from __future__ import annotations

from fastapi import APIRouter

from kvtrove.server.memory import MemoryReport, memory_report
from kvtrove.server.routes.common import ServiceOf, errors

router = APIRouter()


@router.get("/v1/cache/memory", responses=errors(401, 403, 500, 503))
async def memory(service: ServiceOf) -> MemoryReport:
    """Weights, KV cache by group and format, and what is left, in bytes by device."""
    return await service.engine.call(memory_report)
