"""A conversation as the chat template wants it, however its sender wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvtrove.request import RequestError
from kvtrove.server.json_pieces import read_json
from kvtrove.text.chat_template import ChatTemplate

Message = Mapping[str, Any]

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
AUTO, NONE, REQUIRED = "auto", "none", "required"


@dataclass(frozen=True, slots=True)
class CacheMark:
    """The end of a prefix that is to leave the cache last. behind: messages that follow. seconds: None as usual."""

    behind: int
    seconds: float | None = None


@dataclass(frozen=True)
class Conversation:
    """messages, tools: plain dictionaries in OpenAI's shape. tool_choice: auto, none, required or a tool's name.

    allowed: names of the tools that auto and required choose among; None is all.

    variables: passed on to the template. marks: where what its sender wants to be kept ends.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = AUTO
    allowed: tuple[str, ...] | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: tuple[Mapping[str, Any], ...] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[CacheMark, ...] = ()

    def render(self, template: ChatTemplate) -> str:
        return template.render(
            self.messages,
            add_generation_prompt=self.add_generation_prompt and not self.continue_final_message,
            continue_final_message=self.continue_final_message,
            tools=self.tools or None,
            documents=self.documents,
            keep_null_content=True,
            **self.variables,
        )

    @property
    def offered_tools(self) -> tuple[Mapping[str, Any], ...]:
        """Those that may be called: with `none` no one, with a name that one. The template sees all of them always,
        so that the choice does not change the prompt and what is cached of it.
        """
        if self.tool_choice == NONE:
            return ()
        chosen = self.allowed if self.tool_choice in (AUTO, REQUIRED) else (self.tool_choice,)
        return self.tools if chosen is None else tuple(t for t in self.tools if t["function"]["name"] in chosen)

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in (AUTO, NONE)

    def without(self, dropped: Sequence[int]) -> Conversation:
        """The conversation with the messages at these indices left out."""
        gone = set(dropped)
        return replace(self, messages=tuple(m for i, m in enumerate(self.messages) if i not in gone))


def checked(conversation: Conversation) -> Conversation:
    """RequestError when the choice of tools cannot be met or a template variable would replace our own."""
    choice, names = conversation.tool_choice, [tool["function"]["name"] for tool in conversation.tools]
    if conversation.must_call and not names:
        raise RequestError("tool_choice: there are no tools to choose from", "tool_choice")
    if choice not in (AUTO, NONE, REQUIRED) and choice not in names:
        raise RequestError(f"tool_choice: {choice!r} is not among the tools: {', '.join(names)}", "tool_choice")
    own = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    if taken := own.intersection(conversation.variables):
        raise RequestError(
            f"chat_template_kwargs: {min(taken)} is a field of the request itself", "chat_template_kwargs"
        )
    return conversation


def plain_message(message: Message, where: str) -> dict[str, Any]:
    """One message of OpenAI's shape for the template: text as content, arguments as objects, and no `developer`.

    where: its content, for errors.
    """
    plain = {name: value for name, value in message.items() if value is not None}
    plain["role"] = "system" if message["role"] == "developer" else message["role"]
    content = plain.get("content", "")
    plain["content"] = join_text(content, where) if isinstance(content, list) else content
    if calls := plain.pop("tool_calls", None):
        plain["tool_calls"] = [_plain_call(call) for call in calls]
    return plain


def join_text(parts: Sequence[Mapping[str, Any]], where: str) -> str:
    """The text of content parts, on lines of their own. RequestError for a part that is none (images, audio, files)."""
    texts = []
    for n, part in enumerate(parts):
        text = part.get("refusal" if part.get("type") == "refusal" else "text")
        if part.get("type") not in TEXT_PARTS or not isinstance(text, str):
            raise RequestError(f"{where}[{n}]: this model reads text, not {part.get('type')!r}", where.split("[")[0])
        texts.append(text)
    return "\n".join(texts)


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Templates write arguments with `tojson`: as a string they would be quoted twice. null is no argument at all."""
    function = dict(call["function"])
    try:
        arguments = read_json((function.get("arguments") or "{}").encode()) or {}
    except (ValueError, RecursionError):
        arguments = function["arguments"]  # a broken call of an earlier turn is repeated as it was
    return {**call, "function": {**function, "arguments": arguments}}
