"""A small OpenAI-compatible server whose behaviour is known exactly: what it waits for, what it counts, how it fails.

It speaks ASGI, so it runs in virtual time (`virtual_time.py`) as well as behind uvicorn on a real socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

BLOCK = 16  # words


@dataclass
class Behaviour:
    """How the server answers. Tests change it, or replace `plan` to treat requests differently.

    ttft, gap: seconds before the first chunk, and between chunks. per_chunk: tokens in a chunk.
    usage: "continuous", "final" or "none", at most. accepts: optional fields that it takes; 400 for the others.
    tokens_per_word, overhead: how it counts prompt tokens. caches: it remembers prompts, in blocks of BLOCK words.
    fail: prompt -> (status, message) of a refusal, or None.
    """

    models: tuple[str, ...] = ("tiny",)
    api_key: str | None = None
    ttft: float = 0.0
    gap: float = 0.0
    per_chunk: int = 1
    usage: str = "continuous"
    accepts: tuple[str, ...] = ("ignore_eos", "continuous_usage_stats", "include_usage")
    streams: bool = True
    tokens_per_word: float = 1.0
    overhead: int = 0
    caches: bool = False
    fail: Callable[[str], tuple[int, str] | None] = lambda prompt: None
    delay: Callable[[str], float] = lambda prompt: 0.0
    breaks: str = ""  # "error", "cut" or "garbage": what happens in the middle of every stream
    requests: list[dict[str, Any]] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)


def fake_server(behaviour: Behaviour) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if refused := _unauthorised(behaviour, request):
            return refused
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in behaviour.models]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(behaviour, request, await request.json(), chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(behaviour, request, await request.json(), chat=False)

    return app


def _unauthorised(behaviour: Behaviour, request: Request) -> Response | None:
    if behaviour.api_key is None or request.headers.get("authorization") == f"Bearer {behaviour.api_key}":
        return None
    return error(401, "wrong API key")


def error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "error", "param": None, "code": None}}, status)


async def _answer(behaviour: Behaviour, request: Request, body: dict[str, Any], chat: bool) -> Response:
    if refused := _unauthorised(behaviour, request):
        return refused
    if body["model"] not in behaviour.models:
        return error(404, f"no model {body['model']}")
    options = body.get("stream_options", {})
    unknown = ({"ignore_eos"} & set(body) | set(options)) - set(behaviour.accepts)
    if unknown:
        return error(400, f"unknown fields: {sorted(unknown)}")
    prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
    behaviour.requests.append({**body, "said": prompt})
    if failure := behaviour.fail(prompt):
        return error(*failure)
    if not behaviour.streams:
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "whole"}}]})
    return StreamingResponse(_stream(behaviour, body, prompt, chat), media_type="text/event-stream")


async def _stream(behaviour: Behaviour, body: dict[str, Any], prompt: str, chat: bool) -> AsyncIterator[bytes]:
    tokens = body.get("max_tokens", 5)
    wanted = body.get("stream_options", {})
    usage = _usage(behaviour, prompt)
    if chat:
        yield _event(_choice({"role": "assistant", "content": ""}, None, chat))
    await asyncio.sleep(behaviour.ttft + behaviour.delay(prompt))
    sent = 0
    while sent < tokens:
        if sent:
            await asyncio.sleep(behaviour.gap)
        now = min(behaviour.per_chunk, tokens - sent)
        sent += now
        event = _choice({"content": "word " * now}, "length" if sent == tokens else None, chat)
        if wanted.get("continuous_usage_stats") and behaviour.usage == "continuous":
            event["usage"] = {**usage, "completion_tokens": sent}
        yield _event(event)
        if behaviour.breaks:
            if behaviour.breaks != "cut":
                yield {"error": b'data: {"error": {"message": "it broke"}}\n\n', "garbage": b"data: {oops\n\n"}[
                    behaviour.breaks
                ]
            return
    if wanted.get("include_usage") and behaviour.usage != "none":
        yield _event({"choices": [], "usage": {**usage, "completion_tokens": sent}})
    yield b"data: [DONE]\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None, chat: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": delta} if chat else {"text": delta.get("content", "")}
    return {"choices": [{"index": 0, "finish_reason": finish_reason, **said}]}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _usage(behaviour: Behaviour, prompt: str) -> dict[str, Any]:
    words = prompt.split()
    blocks = [" ".join(words[:end]) for end in range(BLOCK, len(words) + 1, BLOCK)]
    hits = 0
    while behaviour.caches and hits < len(blocks) and blocks[hits] in behaviour.cached:
        hits += 1
    behaviour.cached.update(blocks)
    told: dict[str, Any] = {"prompt_tokens": round(len(words) * behaviour.tokens_per_word) + behaviour.overhead}
    if behaviour.caches:
        told["prompt_tokens_details"] = {"cached_tokens": round(hits * BLOCK * behaviour.tokens_per_word)}
    return told
