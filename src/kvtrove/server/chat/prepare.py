"""From a conversation to what the engine runs: a prompt that fits, a grammar if one is asked for, parsers for calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvtrove.prompts import Prompt
from kvtrove.request import CompletionOutput, RequestError, SamplingParams
from kvtrove.server.chat.conversation import Conversation
from kvtrove.server.chat.tool_calls import CallBegins, ChatEvent, PlainText, ToolCallParser
from kvtrove.server.chat.tool_format import call_grammar, parser_for
from kvtrove.server.chat.truncation import cuts, smallest_cut
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.errors import ApiError
from kvtrove.server.guidance import Grammar
from kvtrove.server.job import Job
from kvtrove.server.service import Service

DEFAULT_ANSWER = 1024  # tokens that a truncated conversation leaves for an answer of unknown length


@dataclass(frozen=True)
class ChatRun:
    """What a route needs to know of its chat: the parsers of its choices, and the messages that were left out."""

    conversation: Conversation
    dropped: tuple[int, ...]
    parsers: tuple[ToolCallParser, ...]


async def submit_chat(
    job: Job,
    conversation: Conversation,
    params: SamplingParams,
    grammar: Grammar | None,
    *,
    truncate: bool,
    cap: bool = False,
) -> ChatRun:
    """Render, tokenise, fit, compile, submit. RequestError or ApiError when one of them cannot be done.

    truncate: drop turns until the conversation fits. cap: a max_tokens that goes past the context means all of it.
    """
    service, caller = job.service, job.caller
    guide = await service.guide(_grammar(service, conversation, grammar), params)
    prompt, dropped = await _prompt(job, conversation, None if cap else params.max_tokens, truncate)
    if cap and len(prompt.token_ids) + (params.max_tokens or 0) > service.max_model_len:
        params = replace(params, max_tokens=None)
    if dropped:
        job.notes["truncated_messages"] = dropped
    salt = caller.tenant.cache_salt(job.body.cache_salt)
    request = EngineRequest(f"{job.key}-0", prompt.token_ids, params, prompt.text, salt, guide)
    await job.submit([request], conversation.without(dropped).messages)
    tools, format = conversation.offered_tools, service.tool_format
    parsers = [parser_for(format, tools) if tools else PlainText() for _ in range(params.n)]
    return ChatRun(conversation, tuple(dropped), tuple(parsers))


def _grammar(service: Service, conversation: Conversation, grammar: Grammar | None) -> Grammar | None:
    if not conversation.must_call:
        return grammar
    if grammar is not None:
        raise RequestError(
            f"{grammar.param}: tool_choice asks for a tool call already; give one of them", grammar.param
        )
    parallel = conversation.parallel_tool_calls and conversation.tool_choice == "required"
    return Grammar("lark", call_grammar(service.tool_format, conversation.offered_tools, parallel), "tools")


async def _prompt(
    job: Job, conversation: Conversation, max_tokens: int | None, truncate: bool
) -> tuple[Prompt, list[int]]:
    """A prompt that fits, and the indices of the messages that it leaves out."""
    service, body = job.service, job.body
    tokenize = partial(service.in_pool, _tokenize, service)
    try:
        prompt = await tokenize(conversation)
        service.refuse_unless_it_fits(len(prompt.token_ids), max_tokens, body.prompt_field, body.limit_field)
        return prompt, []
    except ApiError:
        if not truncate:
            raise
        room = service.max_model_len - (max_tokens or min(DEFAULT_ANSWER, service.max_model_len // 4))
        dropped = await service.in_pool(_cut, service, conversation, room)
        if dropped is None:
            raise
    return await tokenize(conversation.without(dropped)), dropped


def render(service: Service, conversation: Conversation) -> str:
    """The text of a conversation. Takes a while: call it off the event loop."""
    template = service.tokenizer.chat_template
    if template is None:
        raise RequestError("messages: this model has no chat template; use /v1/completions", "messages")
    return conversation.render(template)


def _tokenize(service: Service, conversation: Conversation) -> Prompt:
    return service.encode(render(service, conversation), "messages", add_special_tokens=False)


def _cut(service: Service, conversation: Conversation, room: int) -> list[int] | None:
    def fits(dropped: Sequence[int]) -> bool:
        try:
            return len(_tokenize(service, conversation.without(dropped)).token_ids) <= room
        except ApiError:
            return False

    return smallest_cut(cuts(conversation.messages), fits)


class ChoiceReader:
    """Turns the outputs of one choice into events."""

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser
        self.finished = self.called = False

    def read(self, output: CompletionOutput) -> list[ChatEvent]:
        """What is new in `output`, the rest of it at the end. Nothing once it has ended."""
        if self.finished:
            return []
        events = self._parser.push(output.text)
        if output.finished:
            events += self._parser.finish()
            self.finished = True
        self.called = self.called or any(isinstance(event, CallBegins) for event in events)
        return events

    def finish_reason(self, output: CompletionOutput) -> str | None:
        """OpenAI's word for how the choice ended."""
        if output.finish_reason == "stop" and self.called:
            return "tool_calls"
        return output.finish_reason


def streaming(params: SamplingParams, stream: bool) -> SamplingParams:
    """The engine reports what a stream can send at once; otherwise only the end."""
    return replace(params, output_kind="delta" if stream else "final_only")
