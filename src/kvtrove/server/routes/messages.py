"""POST /v1/messages: Anthropic's API, answered by the same conversations as OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, RequestError, SamplingParams
from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.content_blocks import BlockStream, blocks_of
from kvtrove.server.chat.events import ChatEvent
from kvtrove.server.chat.prepare import render, streaming, submit_chat
from kvtrove.server.errors import ApiError
from kvtrove.server.guidance import Grammar
from kvtrove.server.job import Job
from kvtrove.server.protocol.messages import (
    ConversationFields,
    MessageAnswer,
    MessagesRequest,
    MessagesUsage,
    TokenCount,
)
from kvtrove.server.reports_change import Comparison
from kvtrove.server.respond import open_job, respond, sse
from kvtrove.server.routes.common import ANSWERS, GENERATES, ServiceOf, errors, notes_of, settled
from kvtrove.server.routes.messages_input import conversation_of
from kvtrove.server.routes.toolset import LeftOut

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/messages", response_model=None, responses={200: {"model": MessageAnswer}, **errors(*GENERATES)})
async def messages(body: MessagesRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    endpoint = Messages(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


@router.post("/v1/messages/count_tokens", responses=errors(404, *ANSWERS))
async def count_tokens(body: ConversationFields, service: ServiceOf) -> TokenCount:
    """Tokens of the prompt that a conversation makes."""
    service.check_model(body.model)
    text = await service.in_pool(
        lambda: render(service, settled(conversation_of(body), service, body.stable_prefix)[0])
    )
    return {"input_tokens": await service.in_pool(service.tokenizer.count, text)}


class Messages:
    """The endpoint of one request."""

    keep_alive = sse({"type": "ping"}, "ping")

    def __init__(self, job: Job, body: MessagesRequest) -> None:
        self.job, self.body = job, body

    async def submit(self) -> None:
        body, service = self.body, self.job.service
        stops = body.stop_sequences or []
        if len(stops) > service.limits.max_stops or any(len(stop) > service.limits.max_stop_chars for stop in stops):
            most, longest = service.limits.max_stops, service.limits.max_stop_chars
            raise RequestError(f"stop_sequences: at most {most}, of up to {longest} characters", "stop_sequences")
        given = body.given("temperature", "top_p", "top_k", "ignore_eos", "exact_prefix")
        params = SamplingParams(
            max_tokens=max(1, body.max_tokens), stop=tuple(stops), **service.sampling_defaults | given
        )
        left_out = LeftOut()
        conversation, moved = await service.in_pool(
            lambda: settled(conversation_of(body, left_out), service, body.stable_prefix)
        )
        left_out.tell(self.job)
        self.job.notes |= moved
        self.run = await submit_chat(
            self.job,
            conversation,
            streaming(params, bool(body.stream)),
            self._grammar(),
            truncate=body.truncation == "auto",
            cap=True,  # clients of this API send one generous max_tokens whatever the model is
        )

    def _grammar(self) -> Grammar | None:
        wanted = self.body.output_config and self.body.output_config.format
        return Grammar("json_schema", wanted.schema_, "output_config", lenient=True) if wanted else None

    def _wanted(self, events: list[ChatEvent]) -> list[ChatEvent]:
        return events if self.body.max_tokens else []

    async def answer(self) -> MessageAnswer:
        [(one, events)] = await self.run.whole()
        content = blocks_of(self._wanted(events))
        answer = self._envelope() | {"content": content, **self._end(one), "usage": self._usage()}
        return cast(MessageAnswer, answer | notes_of(self.job))

    async def events(self) -> AsyncGenerator[str, None]:
        blocks = BlockStream()
        begun = False
        async for one, events in self.run.stream():
            if not begun:
                begun = True
                yield _event({"type": "message_start", "message": self._envelope() | {"usage": self._usage()}})
            for event in self._wanted(events):
                for piece in blocks.push(event):
                    yield _event(piece)
            if one.finished:
                for piece in blocks.end():
                    yield _event(piece)
                end = {"type": "message_delta", "delta": self._end(one), "usage": self._usage()}
                yield _event(end | notes_of(self.job))
        yield _event({"type": "message_stop"})

    def error_event(self, error: ApiError) -> str:
        return _event(error.body)

    def _end(self, output: CompletionOutput) -> dict[str, Any]:
        by_string = isinstance(output.stop_reason, str)
        enough = self.job.usage()["completion_tokens"] >= self.body.max_tokens
        reason = "max_tokens" if enough else "model_context_window_exceeded"
        if output.finish_reason == "stop" and self.body.max_tokens:
            reason = "tool_use" if self.run.readers[0].called else "stop_sequence" if by_string else "end_turn"
        return {"stop_reason": reason, "stop_sequence": output.stop_reason if by_string else None}

    def _usage(self) -> MessagesUsage:
        usage = self.job.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        created = max(0, self._num_marked(usage["prompt_tokens"]) - cached)
        return {
            "input_tokens": usage["prompt_tokens"] - cached - created,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": created,
            "output_tokens": usage["completion_tokens"] if self.body.max_tokens else 0,
        }

    def _num_marked(self, num_prompt: int) -> int:
        """Tokens of the longest prefix that `cache_control` marks."""
        marked = [pin for result in self.job.results if result.metrics for pin in result.metrics.soft_pins]
        return max((num_prompt if pin.num_tokens is None else pin.num_tokens for pin in marked), default=0)

    def _envelope(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.job.key}",
            "type": "message",
            "role": "assistant",
            "model": self.body.model or self.job.service.model_name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            **self._diagnostics(),
        }

    def _diagnostics(self) -> dict[str, Any]:
        """Null unless the conversation has changed since the answer that it is compared with."""
        if self.body.diagnostics is None:
            return {}
        found: Comparison = self.job.findings.get("comparison", Comparison(found=True))
        if not found.found:
            reason: dict[str, Any] = {"type": "previous_message_not_found"}
        elif found.change is not None:
            reason = {"type": f"{found.change}_changed", "cache_missed_input_tokens": found.missed}
        elif not found.explained:
            reason = {"type": "unavailable"}
        else:
            return {"diagnostics": None}
        return {"diagnostics": {"cache_miss_reason": reason}}


def _event(data: dict[str, Any]) -> str:
    return sse(data, data["type"])
