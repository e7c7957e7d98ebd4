"""POST /v1/chat/completions: conversations, tools, structured outputs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, RequestError
from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Reasoning, Text
from kvtrove.server.chat.prepare import submit_chat
from kvtrove.server.chat.reader import ChoiceReader
from kvtrove.server.errors import ApiError
from kvtrove.server.job import Job
from kvtrove.server.logprobs import chat_logprobs
from kvtrove.server.protocol.chat import (
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ToolCallDelta,
)
from kvtrove.server.respond import COMMENT, DONE, open_job, respond, sse
from kvtrove.server.routes.chat_input import conversation_of, params_of
from kvtrove.server.routes.chat_legacy import legacy, legacy_reason
from kvtrove.server.routes.common import GENERATES, ServiceOf, UsageInStream, errors, notes_of, settled
from kvtrove.server.routes.toolset import LeftOut

router = APIRouter(route_class=BodyRoute)


@router.post(
    "/v1/chat/completions", response_model=None, responses={200: {"model": ChatCompletion}, **errors(*GENERATES)}
)
async def chat_completions(body: ChatRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    endpoint = Chat(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


class Chat:
    """The endpoint of one request."""

    keep_alive = COMMENT

    def __init__(self, job: Job, body: ChatRequest) -> None:
        self.job, self.body = job, body

    async def submit(self) -> None:
        if self.body.chat_template is not None:
            raise RequestError(
                "chat_template: a template is a program, so a request cannot bring one; start the server with "
                "--chat-template FILE",
                "chat_template",
            )
        params = params_of(self.body, self.job.service)
        left_out = LeftOut()
        service, stable = self.job.service, self.body.stable_prefix
        conversation, moved = await service.in_pool(
            lambda: settled(conversation_of(self.body, left_out), service, stable)
        )
        left_out.tell(self.job)
        self.job.notes |= moved
        self.run = await submit_chat(
            self.job, conversation, params, self.body.grammar(), truncate=self.body.truncation == "auto"
        )

    async def answer(self) -> ChatCompletion:
        choices: list[ChatChoice] = []
        for one, events in await self.run.whole():
            choice = self._choice(one, self._logprobs(one), {"message": message_of(events)})
            choices.append(choice | {"finish_reason": self._finish_reason(self.run.readers[one.index], one)})
        answer = self._envelope("chat.completion", choices) | {"usage": self.job.usage()}
        return cast(ChatCompletion, answer | notes_of(self.job))

    async def events(self) -> AsyncGenerator[str, None]:
        usage = UsageInStream(self.job, self.body.stream_options)

        def chunk(choice: ChatChoice) -> str:
            return sse(self._envelope("chat.completion.chunk", [choice]) | usage.of_chunk())

        begun = False
        async for one, events in self.run.stream():
            if not begun:
                begun = True
                opening: ChatAnswer = {"role": "assistant", "content": ""}
                for index in range(len(self.run.readers)):
                    yield chunk({"index": index, "delta": opening, "logprobs": None, "finish_reason": None})
            for choice in self._news(self.run.readers[one.index], one, events):
                yield chunk(choice)
        if last_words := usage.at_end() | notes_of(self.job):
            yield sse(self._envelope("chat.completion.chunk", []) | last_words)
        yield DONE

    def error_event(self, error: ApiError) -> str:
        return sse(error.body) + DONE

    def _news(
        self, reader: ChoiceReader, output: CompletionOutput, events: Sequence[ChatEvent]
    ) -> Iterator[ChatChoice]:
        """What one choice adds to the stream; logprobs go with the first delta of their step."""
        deltas, logprobs = [delta_of(event) for event in events], self._logprobs(output)
        if not deltas and logprobs is not None and logprobs["content"]:
            deltas = [{"content": ""}]
        for delta in deltas:
            yield self._choice(output, logprobs, {"delta": delta})
            logprobs = None
        if output.finished:
            yield self._choice(output, None, {"delta": {}}) | {"finish_reason": self._finish_reason(reader, output)}

    def _finish_reason(self, reader: ChoiceReader, output: CompletionOutput) -> str | None:
        reason = reader.finish_reason(output)
        return legacy_reason(reason) if self.body.functions else reason

    def _logprobs(self, output: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        tokenizer = self.job.service.tokenizer
        return chat_logprobs(output.token_ids, output.logprobs or [], self.body.top_logprobs or 0, tokenizer)

    def _choice(
        self, output: CompletionOutput, logprobs: ChatLogprobs | None, content: dict[str, ChatAnswer]
    ) -> ChatChoice:
        if self.body.functions:
            content = {name: legacy(answer) for name, answer in content.items()}
        choice: dict[str, Any] = {"index": output.index, **content, "logprobs": logprobs, "finish_reason": None}
        if output.stop_reason is not None:
            choice["stop_reason"] = output.stop_reason
        return cast(ChatChoice, choice)

    def _envelope(self, kind: str, choices: Sequence[ChatChoice]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.job.key}",
            "object": kind,
            "created": self.job.created,
            "model": self.body.model or self.job.service.model_name,
            "choices": list(choices),
        }


def delta_of(event: ChatEvent) -> ChatAnswer:
    """What a piece of a stream adds to the message."""
    match event:
        case Reasoning(text):
            return {"reasoning_content": text, "reasoning": text}
        case Text(text):
            return {"content": text}
        case CallBegins(index, call_id, name):
            begins: ToolCallDelta = {"index": index, "id": call_id, "type": "function"}
            return {"tool_calls": [begins | {"function": {"name": name, "arguments": ""}}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(events: Sequence[ChatEvent]) -> ChatAnswer:
    """The whole message that a stream of events makes. Content is null beside tool calls without text."""
    content = "".join(event.text for event in events if isinstance(event, Text))
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    calls: list[ToolCallDelta] = []
    for event in events:
        if isinstance(event, CallBegins):
            calls.append({"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}})
        elif isinstance(event, CallArguments):
            calls[event.index]["function"]["arguments"] += event.text
    message: ChatAnswer = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if thought:
        message |= {"reasoning_content": thought, "reasoning": thought}
    return message | {"tool_calls": calls} if calls else message
