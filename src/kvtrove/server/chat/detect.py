"""Which form of calls and thoughts a chat template teaches, found by making it write a call."""

from __future__ import annotations

import json

from kvtrove.request import RequestError
from kvtrove.server.chat.answer import AnswerSyntax
from kvtrove.server.chat.events import CallArguments, CallBegins, ChatEvent, merged
from kvtrove.server.chat.thoughts import THOUGHTS, detect_thoughts
from kvtrove.server.chat.tool_format import ToolFormat
from kvtrove.server.chat.tool_forms import TOOL_FORMATS
from kvtrove.text.capabilities import CALL, TOOL, USER, Capabilities
from kvtrove.text.chat_template import ChatTemplate

_FALLBACK = "hermes"  # the commonest form, taken when nothing is known


def detect_syntax(template: ChatTemplate | None, capabilities: Capabilities) -> AnswerSyntax:
    """What a template teaches; Hermes' calls and `<think>` where it teaches nothing."""
    if template is None:
        return AnswerSyntax(TOOL_FORMATS[_FALLBACK], THOUGHTS["think"])
    source = "\n".join(template.sources.values())
    thoughts = detect_thoughts(source)
    harmony = thoughts is not None and thoughts.name == "harmony"
    tools = TOOL_FORMATS["harmony"] if harmony else _tools(template, capabilities, source)
    return AnswerSyntax(tools, thoughts or THOUGHTS["think"], capabilities.id_length, thoughts is not None)


def _tools(template: ChatTemplate, capabilities: Capabilities, source: str) -> ToolFormat:
    """Of the formats that read what the template writes, the first that would write it alike."""
    formats = list(dict.fromkeys(TOOL_FORMATS.values()))
    written = _written_call(template, capabilities)
    if written is not None:
        reading = [f for f in formats if _reads(f, written)]
        name, squeezed = CALL["function"]["name"], written.replace(" ", "")
        alike = [f for f in reading if all(p.replace(" ", "") in squeezed for p in f.written.beginning(name))]
        marked = [f for f in reading if f.syntax and f.syntax.mark.search(written)]
        if found := [*alike, *marked, *reading]:
            return found[0]
    return next((f for f in formats if any(mark in source for mark in f.evidence)), TOOL_FORMATS[_FALLBACK])


def _written_call(template: ChatTemplate, capabilities: Capabilities) -> str | None:
    """What the template writes for an assistant's turn that is one call; None when it leaves the call out."""
    for tools in ([TOOL], None):
        try:
            before = template.render([USER], tools=tools)
            whole = template.render([USER, capabilities.call_message()], tools=tools, add_generation_prompt=False)
        except RequestError:
            continue
        if whole.startswith(before):
            return whole[len(before) :]
        return whole[whole.rindex(USER["content"]) + len(USER["content"]) :] if USER["content"] in whole else None
    return None


def _reads(format: ToolFormat, text: str) -> bool:
    """Whether the format's parser finds the call in what the template wrote."""
    if format.syntax is None and not format.has_recipients:
        return False
    parser = AnswerSyntax(format, THOUGHTS["none"]).parser([TOOL])
    found = merged([*parser.push(text), *parser.finish()])
    calls = [event for event in found if isinstance(event, CallBegins | CallArguments)]
    return [_facts(event) for event in calls] == [CALL["function"]["name"], dict(CALL["function"]["arguments"])]


def _facts(event: ChatEvent) -> object:
    if isinstance(event, CallBegins):
        return event.name
    try:
        return json.loads(event.text) if isinstance(event, CallArguments) else None
    except ValueError:
        return None
