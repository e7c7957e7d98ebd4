"""/v1/cache/checkpoints, for administrators: sequences kept as files in the server's directory, and brought back."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Literal, NotRequired

from fastapi import APIRouter, Depends
from typing_extensions import TypedDict

from kvtrove.checkpoints import Restored
from kvtrove.engine import Engine
from kvtrove.kv.tiers.checkpoint import CheckpointError
from kvtrove.request import RequestError
from kvtrove.server.auth import Tenant, tenant_salt
from kvtrove.server.body import BodyRoute
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.protocol.common import Body
from kvtrove.server.routes.common import ANSWERS, ServiceOf, admin_only, errors

router = APIRouter(route_class=BodyRoute, dependencies=[Depends(admin_only)])
log = logging.getLogger(__name__)
_KEY = re.compile(r"(?:chatcmpl-|cmpl-|msg_|resp_)([0-9a-f]{32})")


class Owner(Body):
    """Whose cache it lies in. tenant: one with a cache of its own, null for the shared one. cache_salt: as it sends."""

    tenant: str | None = None
    cache_salt: str | None = None

    @property
    def salt(self) -> str:
        return Tenant("", "" if self.tenant is None else tenant_salt(self.tenant)).cache_salt(self.cache_salt)


class CheckpointRequest(Owner):
    """What to keep under which name: an unfinished answer by its `id`, or what is cached of a conversation or a prompt.

    name: letters, digits, `.`, `_` and `-`. session: the `prompt_cache_key` of the conversation. prompt: text or token
    ids (of a conversation: what /tokenize gives). archive: how sealed rows are stored, lossy and smaller: `int8`,
    `int4`, `lowrank=0.5+int8`.
    """

    name: str
    request_id: str | None = None
    session: str | None = None
    prompt: str | list[int] | None = None
    archive: str | None = None


class StoredCheckpoint(TypedDict):
    """created: seconds since 1970."""

    name: str
    bytes: int
    created: int


class ArchivePrice(TypedDict):
    """row_bytes, exact_row_bytes: of the sealed rows, archived and before. error: of keys and values, root of the mean
    square, relative to their own.
    """

    row_bytes: int
    exact_row_bytes: int
    error: float


class MadeCheckpoint(StoredCheckpoint):
    """price: of an archive."""

    price: NotRequired[ArchivePrice]


class CheckpointList(TypedDict):
    object: Literal["list"]
    data: list[StoredCheckpoint]


class RestoredCheckpoint(TypedDict):
    """tokens: of the sequence. cached_tokens: of its prefix that are cached now. continues: the same request, sent
    again, begins with what had been drawn. archive: how its rows were stored, null where they are exact; error: how far
    its keys and values are off. cache_salt: what requests send to be served from it.
    """

    name: str
    tokens: int
    cached_tokens: int
    continues: bool
    archive: str | None
    error: float
    cache_salt: str | None


@router.post("/v1/cache/checkpoints", responses=errors(404, *ANSWERS, 500))
async def checkpoint(body: CheckpointRequest, service: ServiceOf) -> MadeCheckpoint:
    """Keep a sequence as a file. It is complete when this answers."""
    path = service.engine.engine.checkpoints.path_of(body.name)
    if sum(one is not None for one in (body.request_id, body.session, body.prompt)) != 1:
        raise refused("request_id: give the id of an unfinished answer, a session or a prompt", "request_id")
    text = body.prompt
    tokens = await service.in_pool(service.tokenizer.encode, text) if isinstance(text, str) else text
    if tokens is not None and (not tokens or min(tokens) < 0 or max(tokens) >= service.spec.vocab_size):
        raise refused(f"prompt: give text or token ids from 0 to {service.spec.vocab_size - 1}", "prompt")
    named = body.session if body.session is not None else _engine_id(body.request_id) if body.request_id else ""
    source = named if tokens is None else tokens
    saved = await service.engine.call(lambda engine: engine.checkpoint(source, path, body.salt, body.archive))
    try:
        written = await asyncio.wrap_future(saved)
    except OSError as error:
        raise ApiError(500, f"the checkpoint cannot be written: {error.strerror}", code="storage_failed") from error
    log.warning("checkpoint %s: %d bytes", body.name, written.nbytes)
    made: MadeCheckpoint = {"name": body.name, "bytes": written.nbytes, "created": int(path.stat().st_mtime)}
    if (price := written.price) is not None:
        made["price"] = {"row_bytes": price.nbytes, "exact_row_bytes": price.exact_bytes, "error": price.error}
    return made


@router.get("/v1/cache/checkpoints", responses=errors(401, 403, 500, 503))
async def checkpoints(service: ServiceOf) -> CheckpointList:
    """Every checkpoint in the server's directory."""
    found = await service.in_pool(service.engine.engine.checkpoints.stored)
    data: list[StoredCheckpoint] = [
        {"name": one.name, "bytes": one.nbytes, "created": int(one.written)} for one in found
    ]
    return {"object": "list", "data": data}


@router.post("/v1/cache/checkpoints/{name}/restore", responses=errors(404, *ANSWERS, 500))
async def restore(name: str, body: Owner, service: ServiceOf) -> RestoredCheckpoint:
    """Bring a checkpoint back into the cache."""
    path = service.engine.engine.checkpoints.path_of(name)

    def lossy(archive: str) -> Owner:
        return Owner(tenant=body.tenant, cache_salt=f"{body.cache_salt or ''}~{archive}")

    def work(engine: Engine) -> Restored:
        return engine.restore(path, body.salt, lambda archive: lossy(archive).salt)

    try:
        found = await service.engine.call(work)
    except FileNotFoundError as error:
        raise _unknown(name) from error
    except CheckpointError as error:
        raise refused(f"name: {error}".replace(str(path), name), "name") from error
    return {
        "name": name,
        "tokens": len(found.tokens),
        "cached_tokens": found.num_tokens,
        "continues": found.continues,
        "archive": found.archive or None,
        "error": found.error,
        "cache_salt": lossy(found.archive).cache_salt if found.archive else body.cache_salt,
    }


@router.delete("/v1/cache/checkpoints/{name}", responses=errors(401, 403, 404, 500, 503))
async def delete(name: str, service: ServiceOf) -> StoredCheckpoint:
    """Delete a checkpoint's file."""
    path = service.engine.engine.checkpoints.path_of(name)
    try:
        found = path.stat()
        path.unlink()
    except FileNotFoundError as error:
        raise _unknown(name) from error
    return {"name": name, "bytes": found.st_size, "created": int(found.st_mtime)}


def _engine_id(request_id: str) -> str:
    """The engine's name of the request behind an answer."""
    found = _KEY.fullmatch(request_id)
    if found is None:
        raise RequestError("request_id: give the id that the answer carries, such as chatcmpl-...", "request_id")
    return f"{found[1]}-0"


def _unknown(name: str) -> ApiError:
    return ApiError(
        404, f"there is no checkpoint {name!r}; GET /v1/cache/checkpoints lists them", code="not_found", param="name"
    )
