"""What a request of the Responses API says, in the shape that chat templates know."""

from __future__ import annotations

import json
import re
from typing import Any

from kvtrove.request import RequestError
from kvtrove.server.chat.conversation import TEXT_PARTS, Conversation, checked, join_text, plain_message
from kvtrove.server.chat.keeping import Marks
from kvtrove.server.errors import refused
from kvtrove.server.guidance import Grammar
from kvtrove.server.protocol.responses import (
    ConversationFields,
    FlatTool,
    FlatToolChoice,
    InputItem,
    ResponsesRequest,
)
from kvtrove.server.routes.toolset import LeftOut, Toolset

ROLES = ("developer", "system", "user", "assistant")

_PROGRAMS = ("program", "program_output")
_ELSEWHERE = re.compile(
    "item_reference|compaction.*|additional_tools|configuration_update|mcp_.+|tool_search_.+|.+_call|.+_call_output"
)
_NEEDS_MEMORY = ("previous_response_id", "conversation", "prompt")


def _refuse_memory(body: ConversationFields) -> None:
    """ApiError for fields that name what another server would remember."""
    for name in _NEEDS_MEMORY:
        if getattr(body, name) is not None:
            raise refused(f"{name}: this server remembers no answers; send the whole conversation as input", name)
    if isinstance(body, ResponsesRequest) and body.background:
        raise refused("background: this server keeps no answers to be fetched later; set it to false", "background")


class Functions:
    """The functions of a request: plain ones, and those of namespaces. The model sees one name for each.

    A function of a namespace keeps its own name unless another has it; then it is `namespace.name`.
    """

    def __init__(self, tools: list[FlatTool], left_out: LeftOut) -> None:
        self.toolset = Toolset(left_out)
        self.namespaces: dict[str, tuple[str, str]] = {}  # the model's name -> namespace, name
        self._shown: dict[tuple[str, str], str] = {}
        names = [tool.name for tool in tools if tool.type == "function"]
        for i, tool in enumerate(tools):
            where = f"tools[{i}]"
            if tool.type == "function":
                self.toolset.add(where, _function(tool, tool.name))
            elif tool.type == "namespace" and tool.name:
                for n, inner in enumerate(tool.tools or ()):
                    self._add(f"{where}.tools[{n}]", tool.name, inner, names)
            else:
                self.toolset.skip(where, tool.type, tool.name)

    def _add(self, where: str, namespace: str, tool: FlatTool, names: list[str | None]) -> None:
        if tool.type != "function" or not tool.name:
            return self.toolset.skip(where, tool.type, tool.name)
        shown = tool.name if tool.name not in names else f"{namespace}.{tool.name}"
        names.append(shown)
        self.toolset.add(where, _function(tool, shown))
        self.namespaces[shown] = (namespace, tool.name)
        self._shown[namespace, tool.name] = shown

    def shown(self, namespace: str | None, name: str | None) -> str:
        """The model's name of a function."""
        return self._shown.get((namespace or "", name or ""), name or "")


def _function(tool: FlatTool, name: str | None) -> dict[str, Any]:
    return {"name": name, "description": tool.description, "parameters": tool.parameters}


def read(body: ConversationFields, left_out: LeftOut) -> tuple[Conversation, Functions]:
    """The conversation, and the functions that may be called in it. RequestError for what needs a memory, and for what
    is no text.
    """
    _refuse_memory(body)
    if body.input is None:
        raise refused("input: give the conversation, as a text or as a list of items", "input", "missing_field")
    functions = Functions(body.tools or [], left_out)
    reader = _Reader(functions, left_out)
    if body.instructions:
        reader.messages.append({"role": "system", "content": body.instructions})
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    marks = Marks("input")
    for i, item in enumerate(items):
        reader.add(item, f"input[{i}]")
        marks.openai(item.content, len(reader.messages))
    if not reader.messages:
        raise refused("input: there is no message in it", "input")
    choice, allowed = _choice(body.tool_choice, functions.toolset)
    conversation = Conversation(
        messages=tuple(reader.messages),
        tools=tuple(functions.toolset.functions),
        tool_choice=choice,
        allowed=allowed,
        marks=marks.of(len(reader.messages)),
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )
    return checked(conversation), functions


def _choice(choice: str | FlatToolChoice | None, toolset: Toolset) -> tuple[str, tuple[str, ...] | None]:
    if not isinstance(choice, FlatToolChoice):
        return choice or "auto", None
    if choice.type == "allowed_tools":
        named = [tool.get("name") or tool.get("type") for tool in choice.tools or ()]
        return toolset.among(choice.mode, [name for name in named if isinstance(name, str)])
    if choice.type != "function" or not choice.name:
        kind = choice.type if choice.type != "function" else "a function without a name"
        raise refused(f"tool_choice: {kind:.64} cannot be called here; name a function", "tool_choice")
    return toolset.named(choice.name), None


class _Reader:
    """Reads input items, and notes those that it leaves out."""

    def __init__(self, functions: Functions, left_out: LeftOut) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thought = ""  # of the assistant's message to come
        self._functions, self._left_out = functions, left_out

    def add(self, item: InputItem, where: str) -> None:
        kind = "item_reference" if item.type is None and item.role is None and item.id is not None else item.type
        if kind == "function_call":
            self._add_call(item, self._functions.shown(item.namespace, item.name), item.arguments or "{}", where)
        elif kind == "custom_tool_call":
            self._add_call(item, item.name or "", {"input": item.input or ""}, where)
        elif kind == "local_shell_call":
            self._add_call(item, "local_shell", item.action or {}, where)
        elif kind in ("function_call_output", "custom_tool_call_output", "local_shell_call_output"):
            output = self._text(item.output, f"{where}.output", lenient=True)
            self.messages.append({"role": "tool", "tool_call_id": item.call_id or item.id, "content": output})
        elif kind in (None, "message") and item.role is not None:
            if item.role not in ROLES:
                remedy = "; send what a tool gave as a function_call_output" if item.role == "tool" else ""
                raise RequestError(f"{where}.role: {item.role!r:.64} is not one of {', '.join(ROLES)}{remedy}", "input")
            content = self._text(item.content, f"{where}.content")
            self._append(plain_message({"role": item.role, "content": content}, where))
        elif kind == "reasoning":
            self._thought += _thought_of(item)
        elif kind in _PROGRAMS:
            return
        elif kind is not None and _ELSEWHERE.fullmatch(kind):
            self._left_out.add(where, kind)
        else:
            raise RequestError(f"{where}: this server does not take items of type {kind!r:.64}", "input")

    def _append(self, message: dict[str, Any]) -> None:
        thought = {"reasoning_content": self._thought} if self._thought and message["role"] == "assistant" else {}
        self.messages.append(message | thought)
        self._thought = ""

    def _add_call(self, item: InputItem, name: str, arguments: Any, where: str) -> None:
        """Calls join the assistant's message before them."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        call = {"id": item.call_id or item.id, "type": "function", "function": {"name": name, "arguments": text}}
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._append({"role": "assistant", "content": ""})
        last = self.messages[-1]
        if self._thought:  # between two parts of one message
            last["reasoning_content"] = last.get("reasoning_content", "") + self._thought
            self._thought = ""
        [plain] = plain_message({"role": "assistant", "tool_calls": [call]}, where)["tool_calls"]
        last["tool_calls"] = [*last.get("tool_calls", []), plain]

    def _text(self, content: Any, where: str, *, lenient: bool = False) -> str:
        """A text, or that of a list of parts. lenient: leave out what is no text, and note it, in place of an error."""
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise RequestError(f"{where}: give a text or a list of parts", "input")
        texts = []
        for n, part in enumerate(content):
            kind = part.get("type")
            text = part.get("refusal" if kind == "refusal" else "text")
            if kind in TEXT_PARTS and isinstance(text, str):
                texts.append({"type": "text", "text": text})
            elif lenient:
                self._left_out.add(f"{where}[{n}]", str(kind))
            else:
                raise RequestError(f"{where}[{n}]: this model reads text, not {kind!r:.64}", "input")
        return join_text(texts, where)


def _thought_of(item: InputItem) -> str:
    """The text of a reasoning item, or else its summary."""
    parts = item.content or (item.model_extra or {}).get("summary")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def grammar_of(body: ConversationFields) -> Grammar | None:
    """What `text.format` asks for."""
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json_schema", wanted.schema_ or {"type": "object"}, "text")
    if wanted.schema_ is None:
        raise RequestError("text: json_schema needs a schema", "text")
    return Grammar("json_schema", wanted.schema_, "text", lenient=wanted.strict is not True)
