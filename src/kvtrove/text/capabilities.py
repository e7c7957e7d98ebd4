"""What a chat template makes of the parts of a conversation, found by rendering small ones.

Templates refuse what they do not know, or leave it out in silence; both show when a word is missing from the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from kvtrove.request import RequestError
from kvtrove.text.chat_template import ChatTemplate

USER: dict[str, Any] = {"role": "user", "content": "ZuserZ"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "zprobe",
        "description": "ZdescriptionZ",
        "parameters": {
            "type": "object",
            "properties": {
                "zword": {"type": "string", "description": "a word"},
                "znumber": {"type": "integer", "description": "a number"},
            },
            "required": ["zword"],
        },
    },
}
CALL: dict[str, Any] = {
    "id": "zcall0000",
    "type": "function",
    "function": {"name": "zprobe", "arguments": {"zword": "ZvalueZ", "znumber": 7}},
}
_ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "ZanswerZ"}
_SYSTEM: dict[str, Any] = {"role": "system", "content": "ZsystemZ"}
_OTHER: dict[str, Any] = {"role": "system", "content": "ZotherZ"}
_RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": CALL["id"], "name": "zprobe", "content": "ZresultZ"}
_LONG_ID = "call_0123456789abcdef01234567"


@dataclass(frozen=True)
class Capabilities:
    """content: whether texts are given as strings or as lists of parts. system: where such messages are taken.

    several_systems: also several in a row. alternates: a role must not follow itself. user_after_tool: a user may speak
    right behind a tool's result. tools, calls, results: they are written into the prompt, rather than left out or
    refused. null_content: a call's message must have no content, arguments_as_text: JSON text as arguments.
    id_length: of the ids of calls, where only one is taken.
    """

    content: Literal["text", "parts"] = "text"
    system: Literal["anywhere", "first", "none"] = "anywhere"
    several_systems: bool = True
    alternates: bool = False
    user_after_tool: bool = True
    tools: bool = True
    calls: bool = True
    results: bool = True
    null_content: bool = False
    arguments_as_text: bool = False
    id_length: int | None = None

    def call_message(self, call: Mapping[str, Any] = CALL) -> dict[str, Any]:
        """An assistant's message that is one call, in the form that the template takes."""
        function = dict(call["function"])
        if self.arguments_as_text:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        content = None if self.null_content else ""
        return {"role": "assistant", "content": content, "tool_calls": [{**call, "function": function}]}


def probe(template: ChatTemplate) -> Capabilities:
    """Renders about twenty conversations of a few words."""
    return _Probe(template).capabilities()


class _Probe:
    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._content: Literal["text", "parts"] = "text"
        self._tools: list[dict[str, Any]] | None = None

    def capabilities(self) -> Capabilities:
        shows = self._shows
        if not shows([USER], "ZuserZ"):
            self._content = "parts"
            if not shows([USER], "ZuserZ"):
                self._content = "text"  # it wants something else altogether
        parts = partial(Capabilities, content=self._content)
        tools = self._shows_tools()
        if tools:
            self._tools = [TOOL]
        caps = self._with_calls(parts(tools=tools))
        called = [USER, caps.call_message()]
        asks = [*called, _RESULT]
        results = shows(asks, "ZresultZ")
        both = [_SYSTEM, _OTHER, USER]
        first = shows([_SYSTEM, USER], "ZsystemZ", "ZuserZ")
        later = shows(
            [_SYSTEM, USER, _ASSISTANT, _OTHER, {**USER, "content": "ZlaterZ"}], "ZsystemZ", "ZotherZ", "ZlaterZ"
        )
        return Capabilities(
            content=self._content,
            system="anywhere" if first and later else "first" if first else "none",
            several_systems=first and shows(both, "ZsystemZ", "ZotherZ", "ZuserZ"),
            alternates=not shows([USER, {**USER, "content": "ZlaterZ"}, _ASSISTANT], "ZuserZ", "ZlaterZ"),
            user_after_tool=not results or shows([*asks, {**USER, "content": "ZlaterZ"}], "ZresultZ", "ZlaterZ"),
            tools=tools,
            calls=caps.calls,
            results=results,
            null_content=caps.null_content,
            arguments_as_text=caps.arguments_as_text,
            id_length=self._id_length(caps) if caps.calls or results else None,
        )

    def _shows_tools(self) -> bool:
        self._tools = [TOOL]
        found = self._shows([USER], "zprobe") or self._shows([_SYSTEM, USER], "zprobe")
        self._tools = None
        return found

    def _with_calls(self, caps: Capabilities) -> Capabilities:
        """The first way of writing a call that the template shows; Python's spelling of it is the last resort."""
        tried = [
            Capabilities(content=caps.content, tools=caps.tools, null_content=null, arguments_as_text=as_text)
            for as_text in (False, True)
            for null in (False, True)
        ]
        texts = [self._text([USER, one.call_message()]) for one in tried]
        shown = [(one, text) for one, text in zip(tried, texts, strict=True) if "ZvalueZ" in text and "zprobe" in text]
        good = [one for one, text in shown if "{'zword': 'ZvalueZ'" not in text]
        if good or shown:
            return good[0] if good else shown[0][0]
        return Capabilities(content=caps.content, tools=caps.tools, calls=False)

    def _id_length(self, caps: Capabilities) -> int | None:
        def asks(call_id: str) -> list[dict[str, Any]]:
            return [USER, caps.call_message({**CALL, "id": call_id}), {**_RESULT, "tool_call_id": call_id}]

        if self._shows(asks(_LONG_ID)) or not self._shows(asks(CALL["id"])):
            return None
        return len(CALL["id"])

    def _shows(self, messages: Sequence[Mapping[str, Any]], *words: str) -> bool:
        """Whether the template takes the messages and writes all the words."""
        text = self._text(messages)
        return bool(text) and all(word in text for word in words)

    def _text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the template makes of the messages, nothing when it refuses them."""
        try:
            return self._template.render(
                [as_parts(m) if self._content == "parts" else m for m in messages],
                tools=self._tools,
                add_generation_prompt=messages[-1]["role"] != "assistant",
                keep_null_content=True,
            )
        except RequestError:
            return ""


def as_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its text as a list of one part."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
