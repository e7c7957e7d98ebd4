"""POST /v1/chat/completions: conversations, tools, structured outputs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, SamplingParams
from kvtrove.server.chat.conversation import Conversation, checked, plain_message
from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, Reasoning, Text
from kvtrove.server.chat.prepare import streaming, submit_chat
from kvtrove.server.chat.reader import ChoiceReader
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.job import Job
from kvtrove.server.logprobs import chat_logprobs
from kvtrove.server.protocol.chat import (
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    NamedTool,
    ToolCallDelta,
)
from kvtrove.server.respond import DONE, open_job, respond, sse
from kvtrove.server.routes.common import GENERATES, ServiceOf, UsageInStream, errors, notes_of
from kvtrove.server.service import Service

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=None, responses={200: {"model": ChatCompletion}, **errors(*GENERATES)}
)
async def chat_completions(body: ChatRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    endpoint = Chat(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


def conversation_of(body: ChatRequest) -> Conversation:
    """The conversation of a request. RequestError where it cannot be read."""
    choice = body.tool_choice
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    if continues and begins:
        raise refused("continue_final_message: set add_generation_prompt to false with it", "continue_final_message")
    dumped = [message.model_dump(exclude_none=True) for message in body.messages]
    return checked(
        Conversation(
            messages=tuple(plain_message(message, f"messages[{i}].content") for i, message in enumerate(dumped)),
            tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools or ()),
            tool_choice=choice.function.name if isinstance(choice, NamedTool) else choice or "auto",
            parallel_tool_calls=body.parallel_tool_calls is not False,
            add_generation_prompt=begins,
            continue_final_message=continues,
            documents=None if body.documents is None else tuple(body.documents),
            variables=body.chat_template_kwargs or {},
        )
    )


def params_of(body: ChatRequest, service: Service) -> SamplingParams:
    """RequestError or ApiError where the fields contradict each other or go past a limit."""
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs: set logprobs to true with it", "top_logprobs")
    if (body.top_logprobs or 0) > service.limits.max_logprobs:
        raise refused(f"top_logprobs: at most {service.limits.max_logprobs} are allowed", "top_logprobs")
    if best_of != n and not body.use_beam_search:
        raise refused("best_of: in a chat it is the number of beams; set use_beam_search, or ask for n", "best_of")
    params = body.sampling_params(
        service.limits,
        service.sampling_defaults,
        n=n,
        beam_width=best_of if body.use_beam_search else 0,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return streaming(params, bool(body.stream))


class Chat:
    """The endpoint of one request."""

    def __init__(self, job: Job, body: ChatRequest) -> None:
        self.job, self.body = job, body

    async def submit(self) -> None:
        params = params_of(self.body, self.job.service)
        conversation = conversation_of(self.body)
        self.run = await submit_chat(
            self.job, conversation, params, self.body.grammar(), truncate=self.body.truncation == "auto"
        )

    async def answer(self) -> ChatCompletion:
        choices: list[ChatChoice] = []
        for one, events in await self.run.whole():
            choice = self._choice(one, self._logprobs(one), {"message": message_of(events)})
            choices.append(choice | {"finish_reason": self.run.readers[one.index].finish_reason(one)})
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
            yield self._choice(output, None, {"delta": {}}) | {"finish_reason": reader.finish_reason(output)}

    def _logprobs(self, output: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        spell = self.job.service.tokenizer.token_text
        return chat_logprobs(output.token_ids, output.logprobs or [], self.body.top_logprobs or 0, spell)

    @staticmethod
    def _choice(output: CompletionOutput, logprobs: ChatLogprobs | None, content: dict[str, ChatAnswer]) -> ChatChoice:
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
