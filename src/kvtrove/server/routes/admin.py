"""What administrators may do: /v1/cache/clear, /v1/cache/pins, /v1/cache/compact, /v1/cache/events, /v1/log_level."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header
from fastapi.responses import StreamingResponse
from typing_extensions import TypedDict

from kvtrove.pinning import PinnedPrefix
from kvtrove.request import EngineError, RequestError
from kvtrove.server.auth import Tenant, tenant_salt
from kvtrove.server.body import BodyRoute
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.protocol.common import Body
from kvtrove.server.routes.common import ANSWERS, ServiceOf, admin_only, errors
from kvtrove.server.service import Service

router = APIRouter(route_class=BodyRoute, dependencies=[Depends(admin_only)])
log = logging.getLogger(__name__)


class Cleared(TypedDict):
    blocks: int


class PinRequest(Body):
    """A prompt as text or token ids (of a conversation: what /tokenize gives), and whose cache it lies in.

    tenant: name of a tenant with a cache of its own, null for the shared one. cache_salt: as in the tenant's requests.
    """

    prompt: str | list[int]
    tenant: str | None = None
    cache_salt: str | None = None


class PinAnswer(TypedDict):
    """`tokens` of the prompt are kept, in `blocks` blocks, until DELETE /v1/cache/pins/{id}."""

    id: str
    tokens: int
    blocks: int


class CompactAnswer(PinAnswer):
    """What is left of the prompt is kept as a pin. blocks_before: what its exact keys and values take. computed_tokens:
    of the probes that found out what stays.
    """

    blocks_before: int
    computed_tokens: int


class LogLevel(Body):
    """Of the server's own log, until it is set again or the server ends."""

    level: Literal["debug", "info", "warning", "error"]


class LogLevelSet(TypedDict):
    level: str


@router.post("/v1/cache/clear", responses=errors(401, 403, 500, 503))
async def clear(service: ServiceOf) -> Cleared:
    """Forget every cached block that no request uses, and the tokens of earlier answers."""
    service.recent_answers.clear()
    blocks = await service.engine.call(lambda engine: engine.reset_prefix_cache())
    log.warning("the prefix cache was cleared: %d blocks", blocks)
    return {"blocks": blocks}


@router.post("/v1/cache/pins", responses=errors(*ANSWERS, 500))
async def pin(body: PinRequest, service: ServiceOf) -> PinAnswer:
    """Keep what is cached of a prompt, whatever else needs memory."""
    tokens, salt = await _prompt(body, service), _salt(body)
    try:
        pinned = await service.engine.call(lambda engine: engine.pin(tokens, salt))
    except RequestError as error:
        raise refused(str(error), error.param) from error
    log.warning("pinned %d tokens in %d blocks as %s", pinned.num_tokens, pinned.num_blocks, pinned.id)
    return _answer(pinned)


@router.post("/v1/cache/compact", responses=errors(*ANSWERS, 500))
async def compact(body: PinRequest, service: ServiceOf) -> CompactAnswer:
    """Let later requests that begin with the full blocks of this prompt read what matters of it, and keep that pinned.

    Answers when it is done; other requests go on meanwhile. Pins of the same prompt are let go.
    """
    tokens, salt = await _prompt(body, service), _salt(body)
    try:
        done = await asyncio.wrap_future(await service.engine.call(lambda engine: engine.compact(tokens, salt)))
    except RequestError as error:
        raise refused(str(error), error.param) from error
    except EngineError as error:
        raise ApiError(500, str(error), code="compaction_failed") from error
    pinned = done.pin
    log.warning("compacted %d tokens into %d blocks as %s", pinned.num_tokens, pinned.num_blocks, pinned.id)
    return {**_answer(pinned), "blocks_before": done.blocks_before, "computed_tokens": done.probed}


async def _prompt(body: PinRequest, service: Service) -> list[int]:
    text = body.prompt
    tokens = await service.in_pool(service.tokenizer.encode, text) if isinstance(text, str) else text
    if not tokens or min(tokens) < 0 or max(tokens) >= service.spec.vocab_size:
        raise refused(f"prompt: give text or token ids from 0 to {service.spec.vocab_size - 1}", "prompt")
    return tokens


def _salt(body: PinRequest) -> str:
    return Tenant("", "" if body.tenant is None else tenant_salt(body.tenant)).cache_salt(body.cache_salt)


@router.get("/v1/cache/pins", responses=errors(401, 403, 500, 503))
async def pins(service: ServiceOf) -> list[PinAnswer]:
    """Everything that is pinned."""
    return [_answer(pinned) for pinned in await service.engine.call(lambda engine: engine.pins())]


@router.delete("/v1/cache/pins/{pin_id}", responses=errors(401, 403, 404, 500, 503))
async def unpin(pin_id: str, service: ServiceOf) -> PinAnswer:
    """Let go of a pinned prompt; it stays cached until something else needs its blocks."""
    pinned = await service.engine.call(lambda engine: engine.unpin(pin_id))
    if pinned is None:
        raise ApiError(404, f"there is no pin {pin_id!r}; GET /v1/cache/pins lists them", code="not_found")
    return _answer(pinned)


def _answer(pinned: PinnedPrefix) -> PinAnswer:
    return {"id": pinned.id, "tokens": pinned.num_tokens, "blocks": pinned.num_blocks}


@router.get("/v1/cache/events", include_in_schema=False)  # a schema has no endless streams
async def events(
    service: ServiceOf, last_event_id: Annotated[int | None, Header(ge=0, le=2**63)] = None
) -> StreamingResponse:
    """Blocks that were stored and removed, as server-sent events with vLLM's fields; first all that there are."""
    feed = service.kv_events.subscribe(last_event_id, service.limits.keep_alive)
    return StreamingResponse(feed, media_type="text/event-stream")


@router.post("/v1/log_level", responses=errors(*ANSWERS))
async def log_level(body: LogLevel) -> LogLevelSet:
    """How much the server logs."""
    logging.getLogger("kvtrove").setLevel(body.level.upper())
    return {"level": body.level}
