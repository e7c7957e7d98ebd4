"""The forms in which models write tool calls: one entry each, to read them and to force them. Those that mark every
parameter are in `parameter_forms`.
"""
# ruff: noqa: RUF001  (the marks of some models hold characters that look like others)

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvtrove.config import ConfigError, nearest
from kvtrove.server.chat.call_parser import CallSyntax
from kvtrove.server.chat.call_readers import CallReader, NamedReader, PythonReader, ReaderFactory
from kvtrove.server.chat.call_scanner import CallScanner
from kvtrove.server.chat.parameter_forms import PARAMETER_FORMS
from kvtrove.server.chat.recipients import MARK as RECIPIENT_MARK
from kvtrove.server.chat.tool_format import ToolFormat, Written
from kvtrove.server.chat.tool_schema import Types


class _MistralReader:
    """An object of a list (up to v7), or a name, marks and arguments (from v11 on)."""

    name: str | None = None
    arguments: str | None = None
    done = broken = False
    _reader: CallReader | None = None

    def push(self, text: str) -> int:
        if self._reader is None:
            self._reader = CallScanner() if text.startswith("{") else NamedReader(_MISTRAL_HEAD)
        used = self._reader.push(text)
        self.name, self.arguments = self._reader.name, self._reader.arguments
        self.done, self.broken = self._reader.done, self._reader.broken
        return used


_MISTRAL_HEAD = re.compile(r"([^\[\]{}]{1,256}?)(?:\[CALL_ID\][^\[\]{}]*)?\[ARGS\]\s*")


def _scanner(types: Types) -> CallReader:
    return CallScanner()


def _bare_scanner(types: Types) -> CallReader:
    return CallScanner(only_calls=True)


def _named(head: str, braces: int = 1) -> ReaderFactory:
    pattern = re.compile(head)
    return lambda types: NamedReader(pattern, braces)


_OBJECT = '{"name": "{name}", "arguments": '
_BARE: dict[str, Any] = {
    "bare": r"\{",
    "bare_reader": _bare_scanner,
    "fences": ("```json", "```", "<tools>"),
    "separators": (",", ";", "]", "```", "</tools>"),
}


def _tags(name: str, opening: str, closing: str, aliases: tuple[str, ...] = ()) -> ToolFormat:
    """A list of objects between two tags."""
    written = Written(_OBJECT, "}", ", ", opening + "[", "]" + closing)
    return ToolFormat(name, CallSyntax(_scanner, (opening,), (closing,)), written, aliases, (opening,))


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_CALL = "<｜tool▁call▁begin｜>"
_FORMATS = (
    ToolFormat(
        "harmony",
        None,
        Written(" to=functions.{name}<|channel|>commentary json<|message|>", between=None),
        ("openai", "openai_gptoss", "gpt_oss"),
        ("<|channel|>commentary", "commentary to=functions"),
    ),
    ToolFormat(
        "mistral",
        CallSyntax(lambda types: _MistralReader(), ("[TOOL_CALLS]",)),
        Written("[TOOL_CALLS]{name}[ARGS]", "", ""),
        evidence=("[ARGS]",),
    ),
    ToolFormat(
        "mistral_list",
        CallSyntax(lambda types: _MistralReader(), ("[TOOL_CALLS]",)),
        Written(_OBJECT, "}", ", ", "[TOOL_CALLS][", "]"),
        evidence=("[TOOL_CALLS]",),
    ),
    ToolFormat(
        "deepseek",
        CallSyntax(
            _named(
                _DEEPSEEK_CALL + r"(?:function<｜tool▁sep｜>)?([^<{\n]{1,256}?)(?:<｜tool▁sep｜>\s*|\n```(?:json)?\s*)"
            ),
            _DEEPSEEK[:1],
            _DEEPSEEK[1:],
            _DEEPSEEK_CALL,
            (_DEEPSEEK_CALL,),
            " \t\r\n",
        ),
        Written(
            _DEEPSEEK_CALL + "function<｜tool▁sep｜>{name}\n```json\n", "\n```<｜tool▁call▁end｜>", "\n", *_DEEPSEEK
        ),
        ("deepseek_v3",),
        ("<｜tool▁call▁begin｜>function", "'<｜tool▁call▁begin｜>' + tool['type']"),
    ),
    ToolFormat(
        "deepseek_v31",
        CallSyntax(
            _named(_DEEPSEEK_CALL + r"([^<{\n]{1,256}?)<｜tool▁sep｜>\s*"),
            _DEEPSEEK[:1],
            _DEEPSEEK[1:],
            _DEEPSEEK_CALL,
            (_DEEPSEEK_CALL,),
            " \t\r\n",
        ),
        Written(_DEEPSEEK_CALL + "{name}<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "", *_DEEPSEEK),
        evidence=(_DEEPSEEK_CALL,),
    ),
    *PARAMETER_FORMS,
    ToolFormat(
        "kimi_k2",
        CallSyntax(
            _named(
                r"<\|tool_call_begin\|>\s*(?:functions\.)?([^<{:]{1,256}?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
            ),
            ("<|tool_calls_section_begin|>",),
            ("<|tool_calls_section_end|>",),
            r"<\|tool_call_begin\|>",
            ("<|tool_call_begin|>",),
            " \t\r\n",
        ),
        Written(
            "<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            None,
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
        ),
        evidence=("<|tool_calls_section_begin|>",),
    ),
    ToolFormat(
        "functionary",
        CallSyntax(
            _named(r"<function=([^<>{]{1,256})>\s*"),
            ("<function_calls>",),
            direct=("<function=",),
            starts="<function=",
            lead=" \t\r\n",
            separators=("</function>",),
        ),
        Written("<function={name}>", "</function>", ""),
        ("functionary_v3.1",),
    ),
    ToolFormat(
        "functionary_v3.2",
        None,
        Written("{name}\n", "", RECIPIENT_MARK),
        evidence=(">>>${recipient}",),
    ),
    ToolFormat(
        "solar",
        CallSyntax(
            _named(r"<\|tool_call:begin\|>[^<>{]{0,64}<\|tool_call:name\|>([^<>{]{1,256})<\|tool_call:args\|>\s*"),
            ("<|tool_calls|>",),
            starts=r"<\|tool_call:begin\|>",
            lead=" \t\r\n",
            separators=("<|tool_call:end|>",),
        ),
        Written(
            "<|tool_call:begin|>0<|tool_call:name|>{name}<|tool_call:args|>",
            "<|tool_call:end|>",
            None,
            "<|tool_calls|>",
        ),
    ),
    ToolFormat(
        "hermes",
        CallSyntax(_scanner, ("<tool_call>",), ("</tool_call>",), **_BARE),
        Written("<tool_call>\n" + _OBJECT, "}\n</tool_call>"),
        ("granite4", "qwen", "longcat", "internlm"),
        ("<tool_call>",),
    ),
    _tags("apriel", "<tool_calls>", "</tool_calls>", ("minimax", "minimax_m1")),
    _tags("nemotron", "<TOOLCALL>", "</TOOLCALL>", ("nemotron_json",)),
    ToolFormat(
        "apertus",
        CallSyntax(
            _named(r'\{\s*"([^"{}]{1,256})"\s*:\s*', 2), ("<|tools_prefix|>",), ("<|tools_suffix|>",), r'\{\s*"'
        ),
        Written('{"{name}": ', "}", ", ", "<|tools_prefix|>[", "]<|tools_suffix|>"),
    ),
    ToolFormat(
        "command_r_plus",
        CallSyntax(_scanner, ("Action:\n```json", "Action: ```json", "Action:```json"), ("```",)),
        Written('{"tool_name": "{name}", "parameters": ', "}", ",\n", "Action:\n```json\n[\n", "\n]```"),
    ),
    ToolFormat(
        "cohere",
        CallSyntax(_scanner, ("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        Written(
            '{"tool_call_id": "0", "tool_name": "{name}", "parameters": ',
            "}",
            None,
            "<|START_ACTION|>[\n    ",
            "\n]<|END_ACTION|>",
        ),
        ("cohere_command3", "cohere_command4"),
        ("<|START_ACTION|>",),
    ),
    ToolFormat(
        "granite",
        CallSyntax(_scanner, ("<|tool_call|>",), **_BARE),
        Written(_OBJECT, "}", ", ", "<|tool_call|>[", "]"),
        evidence=("<|tool_call|>",),
    ),
    ToolFormat(
        "gigachat",
        CallSyntax(_scanner, ("<|function_call|>", "function call<|role_sep|>\n"), **_BARE),
        Written("<|function_call|>" + _OBJECT, "}", None),
        ("gigachat3",),
        ("<|function_call|>", "function call<|role_sep|>"),
    ),
    ToolFormat(
        "pythonic",
        CallSyntax(
            lambda types: PythonReader(),
            ("<|tool_call_start|>",),
            ("<|tool_call_end|>",),
            r"(?<![<|\w])[A-Za-z_]",
            bare=r"\[",
        ),
        Written(
            "{name}(", ")", ", ", "<|tool_call_start|>[", "]<|tool_call_end|>", "json_parameters", "{key}=", joint=", "
        ),
        ("lfm2", "llama4_pythonic", "olmo3"),
        ("<|tool_call_start|>", "<|tool_list_start|>", '"List of tools: [" -'),
    ),
    ToolFormat(
        "llama3",
        CallSyntax(_scanner, ("<|python_tag|>",), **_BARE),
        Written('{"name": "{name}", "parameters": ', "}", "; "),
        ("llama3_json", "llama4_json"),
        ("<|python_tag|>", '"parameters": dictionary of argument name'),
    ),
)
TOOL_FORMATS: Mapping[str, ToolFormat] = {name: f for f in _FORMATS for name in (f.name, *f.aliases)}


def format_named(name: str) -> ToolFormat | None:
    """The format of this name or alias, None for `auto`. ConfigError for others."""
    if name == "auto":
        return None
    if name not in TOOL_FORMATS:
        known = ", ".join(["auto", *(f.name for f in _FORMATS)])
        raise ConfigError(
            f"tool_format: {name!r} is not one of {known}, or vLLM's name of one{nearest(name, TOOL_FORMATS)}"
        )
    return TOOL_FORMATS[name]
