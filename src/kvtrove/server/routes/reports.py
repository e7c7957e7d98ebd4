"""GET /v1/cache/reports and POST /v1/cache/explain: how prompts used the cache, and how one would."""

from __future__ import annotations

from array import array
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.prompts import Prompt
from kvtrove.server.auth import Tenant
from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.prepare import tokenized
from kvtrove.server.engine_thread import scope_of
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.protocol.chat import ChatMessage, ChatRequest
from kvtrove.server.protocol.common import TokenId
from kvtrove.server.reports import MAX_REPORTS, CacheReport, Reports, remembered, tool_names
from kvtrove.server.reports_place import Conversation, pieces
from kvtrove.server.reports_recent import Tokens, as_tokens
from kvtrove.server.routes.chat_input import conversation_of
from kvtrove.server.routes.common import ANSWERS, ServiceOf, errors, settled
from kvtrove.server.service import Service

MOST_SHOWN = 8192  # tokens of a prompt


class ReportList(TypedDict):
    """Newest first, of the caller's tenant alone."""

    object: Literal["list"]
    data: list[CacheReport]


class PromptTokens(TypedDict):
    """A prompt, token by token. tokens: their texts, MOST_SHOWN at most. same_tokens: those before the first that
    differs from the earlier prompt that it is most like; all, where none does.
    """

    reused_tokens: int
    same_tokens: int
    prompt_tokens: int
    tokens: list[str]


class PromptList(TypedDict):
    """The prompts of one request."""

    object: Literal["list"]
    data: list[PromptTokens]


class ExplainRequest(ChatRequest):
    """A chat or a completion request as it would be sent; `messages` or one `prompt`."""

    messages: list[ChatMessage] = Field(default_factory=list)
    prompt: str | Annotated[list[TokenId], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None


def reports_router(reports: Reports) -> APIRouter:
    router = APIRouter(route_class=BodyRoute)

    @router.get("/v1/cache/reports", responses=errors(400, 401, 403))
    async def recent(request: Request, limit: Annotated[int, Query(ge=1, le=MAX_REPORTS)] = 20) -> ReportList:
        """The latest prompts of the caller's tenant: what was reused of each, and why no more."""
        tenant: Tenant = request.state.tenant
        return {"object": "list", "data": reports.of_tenant(tenant.name)[:limit]}

    @router.get("/v1/cache/reports/{request_id}", responses=errors(401, 403, 404))
    async def prompt(request_id: str, request: Request, service: ServiceOf) -> PromptList:
        """The prompts of one of the caller's latest requests as texts of their tokens."""
        tenant: Tenant = request.state.tenant
        found = reports.prompts_of(tenant.name, request_id)
        if not found:
            raise ApiError(404, f"no prompt of a request {request_id!r} is remembered", code="request_not_found")
        return {"object": "list", "data": await service.in_pool(lambda: [_shown(service, *one) for one in found])}

    @router.post("/v1/cache/explain", responses=errors(404, 500, *ANSWERS))
    async def explain(body: ExplainRequest, request: Request, service: ServiceOf) -> CacheReport:
        """How a request would use the cache if it came now. It is not run, and changes nothing."""
        service.check_model(body.model)
        tenant: Tenant = request.state.tenant
        adapter = service.adapter_of(body.model)
        salt = tenant.cache_salt(body.cache_salt)
        prompt, conversation = await _read(body, service, salt)
        service.refuse_unless_it_fits(len(prompt.token_ids), 1, "prompt" if body.prompt is not None else "messages")
        ids = array("i", prompt.token_ids)
        exact = body.exact_prefix is True
        explanation = await service.engine.call(lambda engine: engine.kv.peek(ids, engine.scope(salt, adapter), exact))
        scope = scope_of(salt, adapter)
        coming = remembered(request.state.request_id, scope, as_tokens(prompt.token_ids))
        return reports.preview(tenant.name, coming, explanation, conversation)

    return router


def _shown(service: Service, report: CacheReport, tokens: Tokens) -> PromptTokens:
    parted = report["first_divergence"]
    return {
        "reused_tokens": report["reused_tokens"],
        "same_tokens": len(tokens) if parted is None else max(parted["position"], report["reused_tokens"]),
        "prompt_tokens": len(tokens),
        "tokens": pieces(service.tokenizer, tokens[:MOST_SHOWN]),
    }


async def _read(body: ExplainRequest, service: Service, owner: str) -> tuple[Prompt, Conversation]:
    """The prompt of a request. ApiError unless it has messages or a prompt, and not both."""
    if (body.prompt is None) == (not body.messages):
        raise refused("messages: give the messages of a chat or one prompt, and not both", "messages")
    special = body.add_special_tokens is not False
    if body.prompt is None:
        chat, _ = await service.in_pool(lambda: settled(conversation_of(body), service, body.stable_prefix))
        rendered = await service.in_pool(tokenized, service, chat, owner)
        return rendered, Conversation(rendered.text, chat.messages, tool_names(body))
    if isinstance(body.prompt, list):
        return Prompt(body.prompt), Conversation()
    given = body.prompt
    prompt = await service.in_pool(lambda: service.encode(given, "prompt", add_special_tokens=special))
    if not prompt.token_ids:
        raise refused("prompt: it is empty; give at least one token", "prompt")
    return prompt, Conversation()
