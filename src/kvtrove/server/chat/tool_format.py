"""How a model writes tool calls: which parser reads them, and which grammar forces them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kvtrove.server.chat.tool_calls import HermesParser, Llama3Parser, ToolCallParser
from kvtrove.server.guidance import JSON_STYLE

Format = Literal["hermes", "llama3"]
Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

# key of the arguments, text around a call, text between two
_LAYOUT: Mapping[Format, tuple[str, str, str, str]] = {
    "hermes": ("arguments", "<tool_call>\n", "\n</tool_call>", "\n"),
    "llama3": ("parameters", "", "", "; "),
}


def detect_format(template: str) -> Format:
    """The format that a chat template teaches. Hermes' is the commonest, and taken when nothing is known."""
    is_llama = "<tool_call>" not in template and ("<|python_tag|>" in template or '"parameters"' in template)
    return "llama3" if is_llama else "hermes"


def parser_for(format: Format, tools: Sequence[Tool]) -> ToolCallParser:
    if format == "llama3":
        return Llama3Parser([tool["function"]["name"] for tool in tools])
    return HermesParser()


def call_grammar(format: Format, tools: Sequence[Tool], parallel: bool) -> str:
    """Lark grammar of an answer that is one call of one of the tools or, if `parallel`, one call or more."""
    key, before, after, between = _LAYOUT[format]
    schemas = [_call_schema(tool["function"], key) for tool in tools]
    call = " ".join(part for part in (_quoted(before), "object", _quoted(after)) if part)
    more = f" ({_quoted(between)} call)*" if parallel else ""
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    styled = json.dumps({"x-guidance": JSON_STYLE} | schema)
    return f"start: call{more}\ncall: {call}\nobject: %json {styled}\n"


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _call_schema(function: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, key: function.get("parameters") or {"type": "object"}},
        "required": ["name", key],
        "additionalProperties": False,
    }
