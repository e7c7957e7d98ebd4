"""What a request of Anthropic's API says, in OpenAI's shape, which is what chat templates know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kvtrove.request import RequestError
from kvtrove.server.chat.conversation import Conversation, checked, join_text
from kvtrove.server.chat.keeping import Marks
from kvtrove.server.protocol.messages import Block, ConversationFields, InputMessage, MessagesToolChoice
from kvtrove.server.routes.toolset import LeftOut, Toolset
from kvtrove.server.volatile import BILLING

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THOUGHTS = ("thinking", "redacted_thinking")  # the templates that want a thought find it in reasoning_content
_RUN_ELSEWHERE = re.compile("server_tool_use|mcp_tool_use|.+_tool_result|container_upload|compaction")


def conversation_of(body: ConversationFields, left_out: LeftOut | None = None) -> Conversation:
    """The conversation of a request. RequestError for what is no text."""
    reader = _Reader(LeftOut() if left_out is None else left_out)
    plain: list[dict[str, Any]] = []
    marks = Marks("cache_control")
    first = [InputMessage(role="system", content=body.system)] if body.system else []
    for i, message in enumerate([*first, *body.messages], -len(first)):
        plain += reader.messages(message, "system" if i < 0 else f"messages[{i}].content")
        for block in message.content if isinstance(message.content, list) else ():
            marks.anthropic(block.cache_control, len(plain))
    for tool in body.tools or ():
        marks.anthropic(tool.cache_control, len(first))
    marks.anthropic(body.cache_control, len(plain))
    if not plain:
        raise RequestError("messages: there is no text in them", "messages")
    choice = body.tool_choice
    toolset = _tools(body, reader.left_out)
    return checked(
        Conversation(
            messages=tuple(plain),
            tools=tuple(toolset.functions),
            tool_choice=_choice(choice, toolset),
            parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
            marks=marks.of(len(plain)),
            continue_final_message=plain[-1]["role"] == "assistant" and "tool_calls" not in plain[-1],
        )
    )


def _choice(choice: MessagesToolChoice | None, toolset: Toolset) -> str:
    if choice is not None and choice.type == "tool":
        return toolset.named(choice.name or "")
    return _CHOICES["auto" if choice is None else choice.type]


def _tools(body: ConversationFields, left_out: LeftOut) -> Toolset:
    toolset = Toolset(left_out, longest=128)
    for i, tool in enumerate(body.tools or ()):
        if tool.type in (None, "custom"):
            function = {"name": tool.name, "description": tool.description or ""}
            toolset.add(f"tools[{i}]", function | {"parameters": tool.input_schema or {"type": "object"}})
        else:
            toolset.skip(f"tools[{i}]", tool.type or "", tool.name)
    return toolset


class _Reader:
    """Reads content blocks, and notes those that it leaves out."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out

    def messages(self, message: InputMessage, where: str) -> Iterator[dict[str, Any]]:
        """One message of theirs is one or more of ours: results of tools are messages of their own."""
        if isinstance(message.content, str):
            content = _unbilled(message.content) if message.role == "system" else message.content
            if content or message.role != "system":
                yield {"role": message.role, "content": content}
            return
        texts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thought = "".join(block.thinking or "" for block in message.content if block.type == "thinking")
        for n, block in enumerate(message.content):
            place = f"{where}[{n}]"
            if block.type == "tool_result":
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": self._result(block, place)}
            elif block.type == "tool_use":
                calls.append(_call(block, place))
            elif (text := _quoted(block.type, block.source, block.content)) is not None:
                texts.append({"type": "text", "text": text})
            elif _RUN_ELSEWHERE.fullmatch(block.type):
                self.left_out.add(place, block.type)
            elif block.type not in _THOUGHTS and not (message.role == "system" and _is_billing(block)):
                texts.append(block.model_dump(exclude_none=True, exclude={"cache_control"}))
        content = join_text(texts, where)
        if content or calls or not message.content:
            more = {"tool_calls": calls, "reasoning_content": thought}
            yield {"role": message.role, "content": content, **{name: value for name, value in more.items() if value}}

    def _result(self, block: Block, where: str) -> str:
        """The text of what a tool gave. What else it gave is left out, and named in its place if there was no text."""
        content = block.content or ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise RequestError(f"{where}.content: give a text or a list of blocks", "messages")
        texts, others = [], []
        for n, part in enumerate(content):
            kind = str(part.get("type"))
            text = part.get("text") if kind == "text" else _quoted(kind, part.get("source"), part.get("content"))
            if isinstance(text, str):
                texts.append({"type": "text", "text": text})
            else:
                others.append(kind)
                self.left_out.add(f"{where}.content[{n}]", others[-1])
        if others and not texts:
            return f"[{', '.join(dict.fromkeys(others))} left out: this model reads text]"
        return join_text(texts, where)


def _call(block: Block, where: str) -> dict[str, Any]:
    if not isinstance(block.input, dict | None):
        raise RequestError(f"{where}.input: the input of a tool is an object", "messages")
    function = {"name": block.name or "", "arguments": block.input or {}}
    return {"id": block.id, "type": "function", "function": function}


def _quoted(kind: str, source: Any, content: Any) -> str | None:
    """The text of a document or a search result, if it is given as text."""
    if kind == "document" and isinstance(source, dict):
        if source.get("type") == "text":
            return source["data"] if isinstance(source.get("data"), str) else None
        content = source.get("content") if source.get("type") == "content" else None
    elif kind != "search_result":
        return None
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(content) else None


def _is_billing(block: Block) -> bool:
    return block.type == "text" and (block.text or "").startswith(BILLING)


def _unbilled(text: str) -> str:
    """A system message without the line of its biller."""
    return text.partition("\n")[2].lstrip("\n") if text.startswith(BILLING) else text
