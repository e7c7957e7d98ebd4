"""From a conversation to what the engine runs: a prompt that fits, a grammar if there is one, readers of answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvtrove.prompts import Prompt
from kvtrove.request import CompletionOutput, RequestError, SamplingParams
from kvtrove.server.chat.call_grammar import after_thought, call_grammar
from kvtrove.server.chat.conversation import NONE, Conversation
from kvtrove.server.chat.events import ChatEvent
from kvtrove.server.chat.folding import dropped_in_silence, folded
from kvtrove.server.chat.keeping import soft_pins
from kvtrove.server.chat.reader import ChoiceReader
from kvtrove.server.chat.thoughts import closes_thought, opens_thought
from kvtrove.server.chat.truncation import Cuts, smallest_cut
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.errors import ApiError
from kvtrove.server.guidance import Grammar
from kvtrove.server.job import Job
from kvtrove.server.service import Service

log = logging.getLogger(__name__)
DEFAULT_ANSWER = 1024  # tokens that a truncated conversation leaves for an answer of unknown length

Answered = tuple[CompletionOutput, list[ChatEvent]]


@dataclass(frozen=True)
class KeptPrompt(Prompt):
    """num_kept: tokens of earlier answers in it that are as they were drawn, rather than encoded again."""

    num_kept: int = 0


@dataclass(frozen=True)
class ChatRun:
    """A chat that the engine works on. dropped: the messages that were left out. readers: one per choice."""

    job: Job
    conversation: Conversation
    dropped: tuple[int, ...]
    readers: tuple[ChoiceReader, ...]

    async def stream(self) -> AsyncIterator[Answered]:
        """What is new of every choice: the engine's output, and the events in it. Ends when all choices have.

        A choice that has made all the calls that are wanted has ended, whatever its model would still write.
        """
        async for _, output in self.job.outputs():
            if self.job.prewarms:
                for one in output.outputs if output.finished else ():
                    yield replace(one, text="", token_ids=[], logprobs=None, finish_reason="stop"), []
                continue
            for one in output.outputs:
                reader = self.readers[one.index]
                if reader.finished:
                    continue
                events = reader.read(one)
                yield reader.ended(one), events
            if all(reader.finished for reader in self.readers):
                self.job.end_early()
                return

    async def whole(self) -> list[Answered]:
        """Every choice as if it had come in one piece, in their order."""
        found: dict[int, Answered] = {}
        async for one, events in self.stream():
            before, earlier = found.get(one.index, (None, []))
            found[one.index] = (one if before is None else _joined(before, one), earlier + events)
        return [found[index] for index in sorted(found)]


def _joined(a: CompletionOutput, b: CompletionOutput) -> CompletionOutput:
    logprobs = None if a.logprobs is None else [*a.logprobs, *(b.logprobs or [])]
    return replace(b, text=a.text + b.text, token_ids=[*a.token_ids, *b.token_ids], logprobs=logprobs)


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
    service = job.service
    if job.prewarms:
        params = replace(params, max_tokens=1, min_tokens=0, n=1, beam_width=0)
        grammar, conversation = None, replace(conversation, tool_choice=NONE)
    owner = job.caller.tenant.cache_salt(job.body.cache_salt)
    prompt, dropped = await _prompt(job, conversation, owner, None if cap else params.max_tokens, truncate)
    in_thought = opens_thought(service.answer_syntax.thoughts, prompt.text or "", _prefill(conversation))
    thought_over = closes_thought(service.answer_syntax.thoughts, prompt.text or "")
    wanted = await service.in_pool(_grammar, service, conversation, grammar, in_thought, thought_over)
    guide = await service.guide(wanted, params)
    past = len(prompt.token_ids) + (params.max_tokens or 0) > service.max_model_len
    if cap and past and not service.is_endless:
        params = replace(params, max_tokens=None)
    if guide is not None and guide.relaxed:
        job.notes["relaxed"] = list(guide.relaxed)
    if dropped:
        job.notes["truncated_messages"] = dropped
    _warn(job, conversation)
    tools = conversation.offered_tools
    if grammar is not None and grammar.kind == "json_schema" and not conversation.must_call:
        tools = ()  # the answer is JSON that somebody asked for, whatever it looks like
    most = None if conversation.parallel_tool_calls or not tools else 1
    if most is not None and params.output_kind == "final_only" and not params.beam_width:
        params = replace(params, output_kind="delta")  # the sequence ends behind its call
    params = replace(params, shown_token_ids=service.mark_token_ids)
    request = EngineRequest(
        f"{job.key}-0",
        prompt.token_ids,
        params,
        prompt.text,
        owner,
        guide,
        prompt.num_kept,
        soft_pins(job.body, conversation.marks),
        job.body.prompt_cache_key or "",
    )
    await job.submit([request], conversation.without(dropped).messages)
    readers = [
        ChoiceReader(
            service.answer_syntax.parser(tools, in_thought=in_thought, most=most, forced=conversation.must_call),
            partial(_remember, service, owner, request),
            job,
        )
        for _ in range(params.n)
    ]
    return ChatRun(job, conversation, tuple(dropped), tuple(readers))


def _remember(service: Service, owner: str, request: EngineRequest, drawn: Sequence[int]) -> None:
    if request.prompt is not None:
        service.recent_answers.remember(owner, request.prompt, request.prompt_token_ids, drawn)


def _prefill(conversation: Conversation) -> str | None:
    """The text that an answer continues."""
    content = conversation.messages[-1].get("content") if conversation.continue_final_message else None
    return content if isinstance(content, str) else None


def _grammar(
    service: Service, conversation: Conversation, grammar: Grammar | None, in_thought: bool, thought_over: bool
) -> Grammar | None:
    """A forced call's form wins over what the answer should look like otherwise; both hold behind the thought.

    thought_over: the prompt holds the thought of this answer already.
    """
    syntax, spell = service.answer_syntax, service.spell
    if conversation.must_call:
        parallel = conversation.parallel_tool_calls and conversation.tool_choice == "required"
        grammar = call_grammar(syntax.tools, conversation.offered_tools, parallel, spell)
    if grammar is None or not (syntax.thinks or in_thought) or thought_over:
        return grammar
    return after_thought(grammar, syntax.thoughts, in_thought, spell)


def _warn(job: Job, conversation: Conversation) -> None:
    """Say what the template leaves out in silence: in the answer's headers, and once in the log."""
    service = job.service
    for what in dropped_in_silence(conversation, service.capabilities):
        job.warn(f"the chat template leaves {what} out of the prompt")
        if what not in service.warned:
            service.warned.add(what)
            log.warning("this model's chat template leaves %s out of the prompt", what)


async def _prompt(
    job: Job, conversation: Conversation, owner: str, max_tokens: int | None, truncate: bool
) -> tuple[KeptPrompt, list[int]]:
    """A prompt that fits, and the indices of the messages that it leaves out."""
    service, body = job.service, job.body
    tokenize = partial(service.in_pool, tokenized, service)
    try:
        prompt = await tokenize(conversation, owner)
        service.refuse_unless_it_fits(len(prompt.token_ids), max_tokens, body.prompt_field, body.limit_field)
        return prompt, []
    except ApiError:
        if not truncate:
            raise
        room = service.max_model_len - (max_tokens or min(DEFAULT_ANSWER, service.max_model_len // 4))
        dropped = await service.in_pool(_cut, service, conversation, room)
        if dropped is None:
            raise
    return await tokenize(conversation.without(dropped), owner), dropped


def render(service: Service, conversation: Conversation) -> str:
    """The text of a conversation. Takes a while: call it off the event loop."""
    template = service.tokenizer.chat_template
    if template is None:
        raise RequestError("messages: this model has no chat template; use /v1/completions", "messages")
    return folded(conversation, service.capabilities).render(template)


def tokenized(service: Service, conversation: Conversation, owner: str) -> KeptPrompt:
    """The prompt of a conversation, with the answers in it that are remembered as they were drawn. Takes a while."""
    text = render(service, conversation)
    service.refuse_hopeless(text, "messages")
    found = service.recent_answers.encode(owner, text)
    if found is not None:
        return KeptPrompt(found[0], text, num_kept=found[1])
    return KeptPrompt(service.encode(text, "messages", add_special_tokens=False).token_ids, text)


def _cut(service: Service, conversation: Conversation, room: int) -> list[int] | None:
    def fits(dropped: Sequence[int]) -> bool:
        try:
            text = render(service, conversation.without(dropped))
            service.refuse_hopeless(text, "messages")
            return service.tokenizer.count(text) <= room
        except ApiError:
            return False

    return smallest_cut(Cuts(conversation.messages), fits)


def streaming(params: SamplingParams, stream: bool) -> SamplingParams:
    """The engine reports what a stream can send at once; otherwise only the end."""
    return replace(params, output_kind="delta" if stream else "final_only")
