"""POST /v1/responses: OpenAI's newer API, answered by the same conversations as the chat route."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, SamplingParams
from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.events import ChatEvent, Text
from kvtrove.server.chat.output_items import OutputItems
from kvtrove.server.chat.prepare import render, streaming, submit_chat
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.job import Job
from kvtrove.server.logprobs import chat_logprobs
from kvtrove.server.protocol.chat import TokenLogprob
from kvtrove.server.protocol.common import Part
from kvtrove.server.protocol.responses import (
    ConversationFields,
    InputTokens,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from kvtrove.server.reports_change import Comparison
from kvtrove.server.respond import COMMENT, open_job, respond, sse
from kvtrove.server.routes.common import ANSWERS, GENERATES, ServiceOf, errors, notes_of, settled
from kvtrove.server.routes.responses_input import grammar_of, read
from kvtrove.server.routes.toolset import LeftOut

router = APIRouter(route_class=BodyRoute)
LOGPROBS = "message.output_text.logprobs"


@router.post("/v1/responses", response_model=None, responses={200: {"model": ResponseObject}, **errors(*GENERATES)})
async def responses(body: ResponsesRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation. The server remembers none: every request brings all of it."""
    service.check_model(body.model)
    endpoint = Responses(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


@router.post("/v1/responses/input_tokens", responses=errors(404, *ANSWERS))
async def input_tokens(body: ConversationFields, service: ServiceOf) -> InputTokens:
    """Tokens of the prompt that a conversation makes."""
    service.check_model(body.model)
    text = await service.in_pool(
        lambda: render(service, settled(read(body, LeftOut())[0], service, body.stable_prefix)[0])
    )
    return {"object": "response.input_tokens", "input_tokens": await service.in_pool(service.tokenizer.count, text)}


class Responses:
    """The endpoint of one request."""

    keep_alive = COMMENT

    def __init__(self, job: Job, body: ResponsesRequest) -> None:
        self.job, self.body = job, body
        self._sequence = -1
        self._untold: list[TokenLogprob] = []  # of tokens whose text is held back

    async def submit(self) -> None:
        body = self.body
        left_out = LeftOut()
        service = self.job.service
        conversation, functions = await service.in_pool(read, body, left_out)
        conversation, moved = await service.in_pool(settled, conversation, service, body.stable_prefix)
        left_out.tell(self.job)
        self.job.notes |= moved
        self.items = OutputItems(self.job.key, functions.namespaces)
        self.run = await submit_chat(
            self.job, conversation, self._params(), grammar_of(body), truncate=body.truncation == "auto"
        )

    def _params(self) -> SamplingParams:
        """ApiError for log-probabilities past the limit."""
        body, service = self.body, self.job.service
        if (body.top_logprobs or 0) > service.limits.max_logprobs:
            raise refused(f"top_logprobs: at most {service.limits.max_logprobs} are allowed", "top_logprobs")
        given = body.given(
            *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
            *("repetition_penalty", "seed", "ignore_eos", "exact_prefix"),
        )
        own = {"max_tokens": body.max_output_tokens, "logprobs": (body.top_logprobs or 0) if self._listed else None}
        return streaming(SamplingParams(**own | service.sampling_defaults | given), bool(body.stream))

    @property
    def _listed(self) -> bool:
        """Whether log-probabilities are asked for."""
        return LOGPROBS in (self.body.include or ())

    def _told(
        self, output: CompletionOutput, events: Sequence[ChatEvent]
    ) -> Iterator[tuple[ChatEvent, list[TokenLogprob]]]:
        """What is new, and the log-probabilities of a step beside its first text."""
        if self._listed:
            tokenizer = self.job.service.tokenizer
            new = chat_logprobs(output.token_ids, output.logprobs or [], self.body.top_logprobs or 0, tokenizer)
            listed = zip(output.token_ids, new["content"], strict=True)
            self._untold += [entry for token, entry in listed if token not in tokenizer.special_ids]  # they are no text
        for event in events:
            told = self._untold if isinstance(event, Text) else []
            self._untold = []
            yield event, told

    async def answer(self) -> ResponseObject:
        [(one, events)] = await self.run.whole()
        for event, logprobs in self._told(one, events):
            list(self.items.push(event, logprobs))
        list(self.items.end(_status(one)))
        return self._response(_status(one), ended=True)

    async def events(self) -> AsyncGenerator[str, None]:
        yield self._event({"type": "response.created", "response": self._response("in_progress")})
        yield self._event({"type": "response.in_progress", "response": self._response("in_progress")})
        async for one, events in self.run.stream():
            for event, logprobs in self._told(one, events):
                for piece in self.items.push(event, logprobs):
                    yield self._event(piece)
            if one.finished:
                status = _status(one)
                for piece in self.items.end(status):
                    yield self._event(piece)
                yield self._event({"type": f"response.{status}", "response": self._response(status, ended=True)})

    def error_event(self, error: ApiError) -> str:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"  # the words that this API has
        failed = self._response("failed") | {"error": {"code": code, "message": str(error)}}
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
            "temperature": temperature,
            "text": {"format": {"type": "text"}} | (_as_sent(body.text) or {}),
            "tool_choice": _as_sent(body.tool_choice) or "auto",
            "tools": [
                {"strict": None, "parameters": None} | _as_sent(tool) if tool.type == "function" else _as_sent(tool)
                for tool in body.tools or ()
                if tool.type in ("function", "namespace")
            ],
            "top_p": top_p,
            "truncation": body.truncation or "disabled",
            "usage": self._usage() if ended else None,
        }
        return cast(ResponseObject, response | self._diagnostics() | (notes_of(self.job) if ended else {}))

    def _diagnostics(self) -> dict[str, Any]:
        """How the conversation has changed since the answer that it is compared with."""
        found: Comparison | None = self.job.findings.get("comparison")
        if found is None:
            return {}
        if not found.found:
            diagnosis: dict[str, Any] = {"type": "comparison_response_not_found"}
        elif found.change is not None:
            diagnosis = {
                "type": "cache_miss",
                "reason": "tools_changed" if found.change == "tools" else "input_changed",
                "cache_missed_tokens": found.missed,
                "comparison_reusable_tokens": found.common,
            }
        else:
            diagnosis = {"type": "cache_hit" if found.explained else "unavailable"}
        return {"prompt_cache_diagnostics": diagnosis}

    def _usage(self) -> ResponseUsage:
        usage = self.job.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.job.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


def _as_sent(value: Part | str | None) -> Any:
    return value.model_dump(by_alias=True, exclude_unset=True) if isinstance(value, Part) else value


def _status(output: CompletionOutput) -> str:
    return "completed" if output.finish_reason == "stop" else "incomplete"
