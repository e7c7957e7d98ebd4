"""GET /v1/models, GET /v1/models/{id}, GET /version."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from typing_extensions import TypedDict

from kvtrove import __version__
from kvtrove.server.routes.common import ServiceOf, errors
from kvtrove.server.service import Service

router = APIRouter()


class ModelCard(TypedDict):
    """max_model_len: tokens of prompt and answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class Version(TypedDict):
    version: str


def _card(service: Service, name: str) -> ModelCard:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "kvtrove",
        "max_model_len": service.max_model_len,
    }


@router.get("/v1/models", responses=errors(401, 403))
async def models(service: ServiceOf) -> ModelList:
    """The names that requests may use."""
    return {"object": "list", "data": [_card(service, name) for name in service.settings.served_model_names]}


@router.get("/v1/models/{model_id:path}", responses=errors(401, 403, 404))
async def model(model_id: str, service: ServiceOf) -> ModelCard:
    """One of them."""
    service.check_model(model_id)
    return _card(service, model_id)


@router.get("/version", responses=errors(401, 403))
async def version() -> Version:
    """Of the server."""
    return {"version": __version__}
