"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's fields, for administrators."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse

from kvtrove.models.spec import ModelError
from kvtrove.server.body import BodyRoute
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.protocol.common import Body
from kvtrove.server.routes.common import ANSWERS, ServiceOf, admin_only, errors

router = APIRouter(route_class=BodyRoute, dependencies=[Depends(admin_only)])
log = logging.getLogger(__name__)


class LoadAdapter(Body):
    """lora_path: the adapter's folder on the server. load_inplace: another adapter of that name makes room."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapter(Body):
    """lora_int_id: vLLM's; not needed here."""

    lora_name: str
    lora_int_id: int | None = None


@router.post("/v1/load_lora_adapter", response_class=PlainTextResponse, responses=errors(*ANSWERS, 500))
async def load(body: LoadAdapter, service: ServiceOf) -> str:
    """Have a low-rank adapter as PEFT saves it, until it is unloaded or the server ends."""
    name = body.lora_name
    if not name or ":" in name or name in service.settings.served_model_names:
        raise refused(f"lora_name: {name!r:.100} is empty, has a colon, or is the model's own name", "lora_name")
    if name in service.adapters and not body.load_inplace:
        text = f"lora_name: {name!r:.100} is loaded already; unload it first, or ask with load_inplace"
        raise refused(text, "lora_name", "adapter_loaded")
    try:
        await service.load_adapter(name, Path(body.lora_path))
    except (ModelError, OSError, ValueError) as error:
        raise refused(f"lora_path: {error}", "lora_path", "adapter_not_served") from error
    log.warning("adapter %s: loaded from %s", name, body.lora_path)
    return f"Success: LoRA adapter '{name}' added successfully."


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse, responses=errors(*ANSWERS, 404, 500))
async def unload(body: UnloadAdapter, service: ServiceOf) -> str:
    """Take no more requests for an adapter; those that have it come to their end."""
    name = body.lora_name
    if name not in service.adapters:
        here = ", ".join(service.adapters) or "none"
        text = f"lora_name: {name!r:.100} is not loaded; there is {here}"
        raise ApiError(404, text, param="lora_name", code="adapter_not_found")
    await service.unload_adapter(name)
    log.warning("adapter %s: unloaded", name)
    return f"Success: LoRA adapter '{name}' removed successfully."
