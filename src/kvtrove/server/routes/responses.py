"""POST /v1/responses: OpenAI's newer API, answered by the same conversations as the chat route."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, RequestError, SamplingParams
from kvtrove.server.chat.conversation import Conversation, checked, join_text, plain_message
from kvtrove.server.chat.output_items import OutputItems
from kvtrove.server.chat.prepare import streaming, submit_chat
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.guidance import Grammar
from kvtrove.server.job import Job
from kvtrove.server.protocol.chat import ContentPart
from kvtrove.server.protocol.responses import (
    FlatTool,
    InputItem,
    NamedChoice,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from kvtrove.server.respond import open_job, respond, sse
from kvtrove.server.routes.common import GENERATES, ServiceOf, errors, notes_of

router = APIRouter()


@router.post("/v1/responses", response_model=None, responses={200: {"model": ResponseObject}, **errors(*GENERATES)})
async def responses(body: ResponsesRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation. The server remembers none: every request brings all of it."""
    service.check_model(body.model)
    endpoint = Responses(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


def conversation_of(body: ResponsesRequest) -> Conversation:
    """RequestError for what needs a memory, and for what is no text."""
    if body.previous_response_id is not None:
        text = "this server remembers no answers; send the whole conversation as input"
        raise refused(f"previous_response_id: {text}", "previous_response_id")
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for i, item in enumerate(items):
        _append(messages, item, f"input[{i}]")
    if not messages:
        raise refused("input: there is no message in it", "input")
    choice = body.tool_choice
    return checked(
        Conversation(
            messages=tuple(messages),
            tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())),
            tool_choice=choice.name if isinstance(choice, NamedChoice) else choice or "auto",
            parallel_tool_calls=body.parallel_tool_calls is not False,
        )
    )


def _append(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    """Add one item; calls join the assistant's message before them."""
    if item.type == "reasoning":
        return
    if item.type == "function_call":
        function = {"name": item.name or "", "arguments": item.arguments or "{}"}
        call = {"id": item.call_id, "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        last = messages[-1]
        [plain] = plain_message({"role": "assistant", "tool_calls": [call]}, where)["tool_calls"]
        last["tool_calls"] = [*last.get("tool_calls", []), plain]
    elif item.type == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, where)})
    elif item.type in (None, "message") and item.role is not None:
        messages.append(plain_message({"role": item.role, "content": _text(item.content, where)}, where))
    else:
        raise RequestError(f"{where}: this server does not take items of type {item.type!r}", "input")


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    if isinstance(content, list):
        return join_text([part.model_dump(exclude_none=True) for part in content], where)
    return content or ""


def _tool(tool: FlatTool, where: str) -> dict[str, Any]:
    if tool.type != "function" or tool.name is None:
        raise RequestError(f"{where}: only functions with a name can be called, not {tool.type!r}", "tools")
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def grammar_of(body: ResponsesRequest) -> Grammar | None:
    """What `text.format` asks for."""
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json_schema", {"type": "object"}, "text")
    if wanted.schema_ is None:
        raise RequestError("text: json_schema needs a schema", "text")
    return Grammar("json_schema", wanted.schema_, "text")


class Responses:
    """The endpoint of one request."""

    def __init__(self, job: Job, body: ResponsesRequest) -> None:
        self.job, self.body = job, body
        self.items = OutputItems(job.key)
        self._sequence = -1

    async def submit(self) -> None:
        body = self.body
        given = body.given("temperature", "top_p", "ignore_eos")
        params = SamplingParams(max_tokens=body.max_output_tokens, **self.job.service.sampling_defaults | given)
        self.run = await submit_chat(
            self.job,
            conversation_of(body),
            streaming(params, bool(body.stream)),
            grammar_of(body),
            truncate=body.truncation == "auto",
        )

    async def answer(self) -> ResponseObject:
        [(one, events)] = await self.run.whole()
        for event in events:
            list(self.items.push(event))
        list(self.items.end(_status(one)))
        return self._response(_status(one), ended=True)

    async def events(self) -> AsyncGenerator[str, None]:
        yield self._event({"type": "response.created", "response": self._response("in_progress")})
        yield self._event({"type": "response.in_progress", "response": self._response("in_progress")})
        async for one, events in self.run.stream():
            for event in events:
                for piece in self.items.push(event):
                    yield self._event(piece)
            if one.finished:
                status = _status(one)
                for piece in self.items.end(status):
                    yield self._event(piece)
                yield self._event({"type": f"response.{status}", "response": self._response(status, ended=True)})

    def error_event(self, error: ApiError) -> str:
        detail = error.body["error"]
        failed = self._response("failed") | {"error": {"code": detail["code"], "message": detail["message"]}}
        return self._event({"type": "response.failed", "response": failed})

    def _event(self, data: dict[str, Any]) -> str:
        self._sequence += 1
        return sse(data | {"sequence_number": self._sequence}, data["type"])

    def _response(self, status: str, *, ended: bool = False) -> ResponseObject:
        body = self.body
        usual = {"temperature": 1.0, "top_p": 1.0} | self.job.service.sampling_defaults
        temperature = usual["temperature"] if body.temperature is None else body.temperature
        top_p = usual["top_p"] if body.top_p is None else body.top_p
        response = {
            "id": f"resp_{self.job.key}",
            "object": "response",
            "created_at": self.job.created,
            "status": status,
            "model": body.model or self.job.service.model_name,
            "output": [dict(item) for item in self.items.items],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": temperature,
            "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
            "tool_choice": body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedChoice) else "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": top_p,
            "truncation": body.truncation or "disabled",
            "usage": self._usage() if ended else None,
        }
        if isinstance(body.tool_choice, str):
            response["tool_choice"] = body.tool_choice
        return cast(ResponseObject, response | (notes_of(self.job) if ended else {}))

    def _usage(self) -> ResponseUsage:
        usage = self.job.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.job.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


def _status(output: CompletionOutput) -> str:
    return "completed" if output.finish_reason == "stop" else "incomplete"
