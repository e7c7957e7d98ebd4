"""GET /v1/models, GET /v1/models/{id}, GET /version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Header
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
    parent: NotRequired[str]
    """Of an adapter: the model that it changes."""


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class AnthropicModel(TypedDict):
    """The same in Anthropic's words. created_at: when the server started, RFC 3339."""

    id: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int
    max_tokens: int


class AnthropicList(TypedDict):
    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None


class Version(TypedDict):
    version: str


def _card(service: Service, name: str) -> ModelCard:
    card: ModelCard = {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "kvtrove",
        "max_model_len": service.max_model_len,
    }
    if service.adapter_of(name):
        card["parent"] = service.model_name
    return card


def _anthropic(service: Service, name: str) -> AnthropicModel:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": service.max_model_len,
        "max_tokens": service.max_model_len,
    }


Anthropics = Annotated[str | None, Header(alias="anthropic-version", description="Asks for Anthropic's shape.")]


@router.get("/v1/models", responses=errors(401, 403))
async def models(service: ServiceOf, anthropic_version: Anthropics = None) -> ModelList | AnthropicList:
    """The names that requests may use."""
    names = (*service.settings.served_model_names, *service.adapters)
    if anthropic_version is None:
        return {"object": "list", "data": [_card(service, name) for name in names]}
    cards = [_anthropic(service, name) for name in names]
    return {"data": cards, "has_more": False, "first_id": names[0], "last_id": names[-1]}


@router.get("/v1/models/{model_id:path}", responses=errors(401, 403, 404))
async def model(model_id: str, service: ServiceOf, anthropic_version: Anthropics = None) -> ModelCard | AnthropicModel:
    """One of them."""
    service.check_model(model_id)
    return _card(service, model_id) if anthropic_version is None else _anthropic(service, model_id)


@router.get("/version", responses=errors(401, 403))
async def version() -> Version:
    """Of the server."""
    return {"version": __version__}
