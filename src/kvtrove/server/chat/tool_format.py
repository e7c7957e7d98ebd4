"""The forms in which models write tool calls: one entry each, to read them and to force them."""
# ruff: noqa: RUF001  (the marks of some models hold characters that look like others)

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvtrove.config import ConfigError, nearest
from kvtrove.server.chat.call_parser import CallSyntax
from kvtrove.server.chat.call_readers import CallReader, NamedReader, ParameterReader, PythonReader, ReaderFactory
from kvtrove.server.chat.call_scanner import CallScanner
from kvtrove.server.chat.harmony import MARKS as HARMONY_MARKS
from kvtrove.server.chat.tool_schema import Types

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


@dataclass(frozen=True)
class Written:
    """How a forced call is written. Every part is plain text; `{name}` and `{key}` are filled in.

        head call between call tail          call: before, arguments, after

    kind: `object` (arguments are one JSON object), `parameters` (each value between `opening` and `closing`, strings as
    they are; `joint` between two) or `json_parameters` (strings as JSON writes them). between: None when the form holds
    one call alone.
    """

    before: str
    after: str = ""
    between: str | None = "\n"
    head: str = ""
    tail: str = ""
    kind: Literal["object", "parameters", "json_parameters"] = "object"
    opening: str = ""
    closing: str = ""
    joint: str = ""

    def beginning(self, name: str) -> tuple[str, str]:
        """What stands before the arguments of a first call of this name."""
        return self.head, self.before.replace("{name}", name)


@dataclass(frozen=True)
class ToolFormat:
    """aliases: vLLM's names of parsers that read this form. evidence: marks in a template's source that tell the form
    where the template itself writes no call. syntax: None for harmony, which has a parser of its own.
    """

    name: str
    syntax: CallSyntax | None
    written: Written
    aliases: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must reach the parser although a tokenizer may hold them for special tokens."""
        w = self.written
        if self.syntax is None:
            return HARMONY_MARKS
        written = (w.head, w.before, w.after, w.tail, w.opening, w.closing)
        return (*self.syntax.opens, *self.syntax.closes, *self.syntax.direct, *written)


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


def _named(head: str) -> ReaderFactory:
    pattern = re.compile(head)
    return lambda types: NamedReader(pattern)


def _parameters(head: str, opening: str, closing: str, end: str) -> ReaderFactory:
    first, second = re.compile(head), re.compile(opening)
    return lambda types: ParameterReader(types, first, second, closing, end)


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


def _xml(name: str, opening: str, closing: str, layout: str, aliases: tuple[str, ...] = ()) -> ToolFormat:
    """`<function=f>` and `<parameter=a>` between tags; layout: what stands around a value."""
    reader = _parameters(r"<function=([^<>]{1,256})>", r"<parameter=([^<>]{1,256})>", "</parameter>", "</function>")
    syntax = CallSyntax(reader, (opening,), (closing,), "<function=", ("<function=",), " \t\r\n")
    written = Written(
        f"{opening}\n<function={{name}}>\n",
        f"</function>\n{closing}",
        kind="parameters",
        opening=f"<parameter={{key}}>{layout}",
        closing=f"{layout}</parameter>\n",
    )
    return ToolFormat(name, syntax, written, aliases, (f"{opening}\n<function=", "<function="))


def _invoke(name: str, tag: str, parts: str, aliases: tuple[str, ...] = ()) -> ToolFormat:
    """`<invoke name="f">` and `<parameter name="a">` between tags. parts: what stands before these names."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    typed = "｜DSML｜" in parts
    reader = _parameters(
        rf'<{parts}invoke name="([^"<>]{{1,256}})">',
        rf'<{parts}parameter name="([^"<>]{{1,256}})"[^<>]{{0,64}}>',
        f"</{parts}parameter>",
        f"</{parts}invoke>",
    )
    syntax = CallSyntax(reader, (opening,), (closing,), f"<{parts}invoke ", (f"<{parts}invoke ",), " \t\r\n")
    written = Written(
        f'<{parts}invoke name="{{name}}">\n',
        f"</{parts}invoke>\n",
        "",
        f"{opening}\n",
        closing,
        "parameters",
        f'<{parts}parameter name="{{key}}"' + (' string="{string}">' if typed else ">"),
        f"</{parts}parameter>\n",
    )
    return ToolFormat(name, syntax, written, aliases, (opening,))


_ATTRIBUTE = '<{} name="([^"<>]{{1,256}})">'
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
    _invoke("deepseek_v32", "｜DSML｜function_calls", "｜DSML｜"),
    _invoke("deepseek_v4", "｜DSML｜tool_calls", "｜DSML｜"),
    _invoke("minimax_m2", "minimax:tool_call", ""),
    _invoke("muse", "atem:function_calls", "atem:"),
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
        "glm",
        CallSyntax(
            _parameters(
                r"([^<>{}\n]{1,256})(?=<|\n)",
                r"<arg_key>([^<>]{1,256})</arg_key>\s*<arg_value>",
                "</arg_value>",
                "</tool_call>",
            ),
            ("<tool_call>",),
            lead=" \t\r\n",
            starts="(?!)",
            separators=(),
        ),
        Written(
            "<tool_call>{name}\n",
            "</tool_call>",
            kind="parameters",
            opening="<arg_key>{key}</arg_key>\n<arg_value>",
            closing="</arg_value>\n",
        ),
        ("glm45", "glm47"),
        ("<arg_key>",),
    ),
    _xml("qwen3_coder", "<tool_call>", "</tool_call>", "\n", ("qwen3_xml", "mimo", "step3p5")),
    _xml("seed_oss", "<seed:tool_call>", "</seed:tool_call>", ""),
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
        "minicpm5",
        CallSyntax(
            _parameters(_ATTRIBUTE.format("function"), _ATTRIBUTE.format("param"), "</param>", "</function>"),
            (),
            direct=("<function name=",),
            starts="<function name=",
            lead=" \t\r\n",
            separators=(),
        ),
        Written(
            '<function name="{name}">', "</function>", "\n", "", "", "parameters", '<param name="{key}">', "</param>"
        ),
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
        ("<|tool_call_start|>",),
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
