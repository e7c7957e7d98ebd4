"""Answers in the words that OpenAI's API had before there were tools: one `function_call` in place of `tool_calls`."""

from __future__ import annotations

from typing import cast

from kvtrove.server.protocol.chat import ChatAnswer


def legacy(answer: ChatAnswer) -> ChatAnswer:
    """A message, or what is added to one: its first call is the function_call."""
    calls = answer.get("tool_calls")
    if calls is None:
        return answer
    old = cast(ChatAnswer, {name: value for name, value in answer.items() if name != "tool_calls"})
    first = [call["function"] for call in calls if call.get("index", 0) == 0]
    return old | {"function_call": first[0]} if first else old


def legacy_reason(reason: str | None) -> str | None:
    return "function_call" if reason == "tool_calls" else reason
