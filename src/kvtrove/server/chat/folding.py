"""A conversation in the form that one chat template takes. Nothing changes where the template needs no change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvtrove.server.chat.conversation import Conversation, Message
from kvtrove.text.capabilities import Capabilities, as_parts

BETWEEN = "\n\n"  # texts of two messages that become one


def folded(conversation: Conversation, can: Capabilities) -> Conversation:
    """The same conversation as the template needs it.

    Leading system messages become one where it takes only one, and part of the first user's message where it takes
    none. Later ones, where it takes none there, become part of the next user's message: what stands before it stays as
    it is, in the prompt and in the cache. Messages of one role that follow each other become one where roles must
    alternate. Calls and contents are written in the form that it reads.
    """
    messages = list(conversation.messages)
    messages = _fold_systems(messages, can)
    if not can.results and any(m["role"] == "tool" for m in messages):
        messages = [_as_user(m) for m in messages]
    if can.alternates:
        messages = list(_alternating(messages))
    if not can.user_after_tool:
        messages = list(_behind_results(messages))
    messages = [_in_form(m, can) for m in messages]
    return replace(conversation, messages=tuple(messages))


def dropped_in_silence(conversation: Conversation, can: Capabilities) -> list[str]:
    """What the template leaves out of the prompt, in words."""
    found = []
    if conversation.tools and not can.tools:
        found.append("tools")
    if not can.calls and any(m.get("tool_calls") for m in conversation.messages):
        found.append("earlier tool calls")
    return found


def _fold_systems(messages: Sequence[Message], can: Capabilities) -> list[Message]:
    lead = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    leading, rest = list(messages[:lead]), list(messages[lead:])
    if len(leading) > 1 and not can.several_systems:
        leading = [_merged(leading)]
    if can.system != "anywhere":
        rest = _into_next_user(rest)
    if can.system == "none":
        return _into_next_user([*leading, *rest])
    return [*leading, *rest]


def _into_next_user(messages: Sequence[Message]) -> list[Message]:
    """System messages as the beginning of the user's message that follows, or as one of the user's own."""
    found: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message)
            continue
        if waiting:
            if message["role"] == "user":
                message = _merged([*waiting, message], "user")
            else:
                found.append(_merged(waiting, "user"))
            waiting = []
        found.append(message)
    return [*found, _merged(waiting, "user")] if waiting else found


def _alternating(messages: Sequence[Message]) -> Iterator[Message]:
    """Neighbours of one role joined; calls and results stay apart."""
    group: list[Message] = []
    for message in messages:
        joins = group and message["role"] == group[-1]["role"] != "tool" and "tool_calls" not in group[-1]
        if group and not (joins and "tool_calls" not in message):
            yield _merged(group)
            group = []
        group.append(message)
    if group:
        yield _merged(group)


def _behind_results(messages: Sequence[Message]) -> Iterator[Message]:
    """A user's words right behind a tool's result as part of the result."""
    last: Message | None = None
    for message in messages:
        if last is not None and last["role"] == "tool" and message["role"] == "user":
            last = _merged([last, message], "tool")
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def _as_user(message: Message) -> Message:
    if message["role"] != "tool":
        return message
    return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}


def _merged(messages: Sequence[Message], role: str | None = None) -> Message:
    """One message with all texts; what else it has is the first's of that role."""
    if len(messages) == 1 and role in (None, messages[0]["role"]):
        return messages[0]
    role = role or messages[0]["role"]
    base = next((m for m in messages if m["role"] == role), {})
    texts = [text for m in messages if (text := m.get("content") or "")]
    return {**base, "role": role, "content": BETWEEN.join(texts)}


def _in_form(message: Message, can: Capabilities) -> Message:
    result = dict(message)
    if can.id_length and result.get("tool_call_id"):
        result["tool_call_id"] = short_id(result["tool_call_id"], can.id_length)
    if calls := result.get("tool_calls"):
        result["tool_calls"] = [_call(call, can) for call in calls]
        if can.null_content and not result.get("content"):
            result["content"] = None
    return as_parts(result) if can.content == "parts" and isinstance(result.get("content"), str) else result


def _call(call: Mapping[str, Any], can: Capabilities) -> dict[str, Any]:
    result = dict(call)
    if can.id_length and result.get("id"):
        result["id"] = short_id(result["id"], can.id_length)
    arguments = result["function"].get("arguments")
    if can.arguments_as_text and not isinstance(arguments, str):
        result["function"] = {**result["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return result


def short_id(call_id: str, length: int) -> str:
    """An id that the template takes, the same for the same id: another server may have made it."""
    if len(call_id) == length and call_id.isalnum() and call_id.isascii():
        return call_id
    return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:length]
