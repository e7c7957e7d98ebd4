"""What a chat request says: its conversation, its tools, its sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvtrove.request import RequestError, SamplingParams
from kvtrove.server.chat.conversation import TEXT_PARTS, CacheMark, Conversation, checked, plain_message
from kvtrove.server.chat.keeping import Marks
from kvtrove.server.chat.prepare import streaming
from kvtrove.server.errors import refused
from kvtrove.server.protocol.chat import ChatMessage, ChatRequest, FunctionCall, NamedFunction, Tool, ToolChoice
from kvtrove.server.routes.toolset import LeftOut, Toolset
from kvtrove.server.service import Service

THOUGHTS = ("thinking", "redacted_thinking", "reasoning")  # templates that want them read reasoning_content


def conversation_of(body: ChatRequest, left_out: LeftOut | None = None) -> Conversation:
    """The conversation of a request. RequestError where it cannot be read."""
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    if continues and begins:
        raise refused("continue_final_message: set add_generation_prompt to false with it", "continue_final_message")
    left_out = LeftOut() if left_out is None else left_out
    toolset = tools_of(body.tools, left_out)
    choice, allowed = _choice(body, toolset)
    return checked(
        Conversation(
            messages=messages_of(body.messages, left_out),
            tools=tuple(toolset.functions),
            tool_choice=choice,
            allowed=allowed,
            parallel_tool_calls=body.parallel_tool_calls is not False and not body.functions,
            add_generation_prompt=begins,
            continue_final_message=continues,
            documents=None if body.documents is None else tuple(body.documents),
            variables=body.chat_template_kwargs or {},
            marks=_marks(body),
        )
    )


def _marks(body: ChatRequest) -> tuple[CacheMark, ...]:
    marks = Marks("messages")
    for i, message in enumerate(body.messages, 1):
        if isinstance(message.content, list):
            marks.openai([part.model_extra for part in message.content], i)
    return marks.of(len(body.messages))


def messages_of(messages: Sequence[ChatMessage], left_out: LeftOut) -> tuple[dict[str, Any], ...]:
    """The messages for the template. RequestError for a part that is no text, but in what a tool gave."""
    plain: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        fields = message.model_dump(exclude_none=True, exclude={"tool_calls", "function_call"})
        if isinstance(content := fields.get("content"), list):
            fields |= _read_parts(content, message.role in ("tool", "function"), f"messages[{i}].content", left_out)
        calls = [_call(call.function or call.custom, call.id) for call in message.tool_calls or ()]
        if message.function_call is not None:
            calls.append(_call(message.function_call, f"call{i:05}"))
        if calls:
            fields["tool_calls"] = calls
        if message.role == "function":
            called = plain[-1].get("tool_calls") if plain else None
            fields |= {"role": "tool", "tool_call_id": called[-1]["id"] if called else f"call{i:05}"}
        plain.append(plain_message(fields, f"messages[{i}].content"))
    return tuple(plain)


def _read_parts(parts: list[dict[str, Any]], of_tool: bool, where: str, left_out: LeftOut) -> dict[str, Any]:
    """The content without thoughts, and the thoughts. What a tool gave loses what is no text."""
    kept, thoughts = [], []
    for n, part in enumerate(parts):
        if part["type"] in THOUGHTS:
            thoughts.append(part.get("thinking") or part.get("text"))
        elif of_tool and part["type"] not in TEXT_PARTS:
            left_out.add(f"{where}[{n}]", part["type"])
        else:
            kept.append(part)
    thought = "".join(text for text in thoughts if isinstance(text, str))
    return {"content": kept} | ({"reasoning_content": thought} if thought else {})


def _call(call: Any, call_id: str | None) -> dict[str, Any]:
    """One call of an earlier answer; what a custom tool was given is the argument `input`."""
    if call is None:
        raise RequestError("messages: a tool call needs its function", "messages")
    arguments = call.arguments if isinstance(call, FunctionCall) else {"input": call.input}
    text = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments or ""
    named = {} if call_id is None else {"id": call_id}
    return named | {"type": "function", "function": {"name": call.name, "arguments": text}}


def tools_of(tools: Sequence[Tool] | None, left_out: LeftOut) -> Toolset:
    """The functions among the tools of a request."""
    toolset = Toolset(left_out)
    for i, tool in enumerate(tools or ()):
        where = f"tools[{i}]"
        if tool.type == "function":
            toolset.add(f"{where}.function", tool.function.model_dump() if tool.function else {})
        else:
            name = (tool.custom or {}).get("name")
            toolset.skip(where, tool.type, name if isinstance(name, str) else None)
    return toolset


def _choice(body: ChatRequest, toolset: Toolset) -> tuple[str, tuple[str, ...] | None]:
    """Which of the tools may be called: a mode or a name, and the names that the mode is about."""
    if body.functions is not None:
        if body.tools:
            raise refused("functions: the old name of tools; give one of them", "functions")
        for i, function in enumerate(body.functions):
            toolset.add(f"functions[{i}]", function.model_dump())
        call = body.function_call
        return (call.name if isinstance(call, NamedFunction) else call or "auto"), None
    choice = body.tool_choice
    if not isinstance(choice, ToolChoice):
        return choice or "auto", None
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        named = [tool.get(str(tool.get("type")), {}) for tool in choice.allowed_tools.tools]
        return toolset.among(choice.allowed_tools.mode, [n.get("name") for n in named if isinstance(n, dict)])
    chosen = choice.function if choice.type == "function" else choice.custom
    if chosen is None:
        raise refused(f"tool_choice: type {choice.type} needs the field {choice.type}", "tool_choice")
    return toolset.named(chosen.name), None


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
