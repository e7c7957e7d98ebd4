"""POST /tokenize, POST /detokenize, GET /tokenizer_info: what the model's tokenizer makes of a text."""

from __future__ import annotations

from fastapi import APIRouter, Response

from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.conversation import Conversation, checked
from kvtrove.server.chat.prepare import render
from kvtrove.server.errors import refused
from kvtrove.server.protocol.tokenize import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from kvtrove.server.respond import json_response
from kvtrove.server.routes.chat_input import messages_of, tools_of
from kvtrove.server.routes.common import ANSWERS, ServiceOf, errors
from kvtrove.server.routes.toolset import LeftOut

router = APIRouter(route_class=BodyRoute)


@router.post("/tokenize", response_model=None, responses={200: {"model": Tokenized}, **errors(404, *ANSWERS)})
async def tokenize(body: TokenizeRequest, service: ServiceOf) -> Response:
    """Token ids of a text, or of a conversation as the model would see it."""
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refused("prompt: give either prompt or messages", "prompt")
    if body.prompt is not None:
        text, special = body.prompt, body.add_special_tokens is not False
    else:
        text, special = await service.in_pool(lambda: render(service, _conversation(body))), False
    tokens = await service.in_pool(lambda: service.tokenizer.encode(text, add_special_tokens=special))
    result: Tokenized = {"count": len(tokens), "max_model_len": service.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        spell = service.tokenizer.token_text
        result["token_strs"] = await service.in_pool(lambda: [spell(token) for token in tokens])
    return await json_response(service, result)


def _conversation(body: TokenizeRequest) -> Conversation:
    continues, left_out = bool(body.continue_final_message), LeftOut()
    return checked(
        Conversation(
            messages=messages_of(body.messages or (), left_out),
            tools=tuple(tools_of(body.tools, left_out).functions),
            add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continues,
            variables=body.chat_template_kwargs or {},
        )
    )


@router.post("/detokenize", responses=errors(404, *ANSWERS))
async def detokenize(body: DetokenizeRequest, service: ServiceOf) -> Detokenized:
    """Text of token ids, special tokens included."""
    service.check_model(body.model)
    return {"prompt": await service.in_pool(lambda: service.tokenizer.decode(body.tokens, skip_special_tokens=False))}


@router.get("/tokenizer_info", responses=errors(401, 403))
async def tokenizer_info(service: ServiceOf) -> TokenizerInfo:
    """What evaluation tools ask before they build prompts themselves."""
    tokenizer, template = service.tokenizer, service.tokenizer.chat_template
    named = tokenizer.named_tokens
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "max_model_len": service.max_model_len,
        "bos_token": named.get("bos_token"),
        "eos_token": named.get("eos_token"),
        "pad_token": named.get("pad_token"),
        "unk_token": named.get("unk_token"),
        "chat_template": None if template is None else template.sources.get("default"),
    }
