"""The forms of tool calls that mark every parameter: one entry each, to read them and to force them."""
# ruff: noqa: RUF001  (the marks of some models hold characters that look like others)

from __future__ import annotations

import re

from kvtrove.server.chat.call_parser import CallSyntax
from kvtrove.server.chat.call_readers import GemmaReader, ParameterReader, ReaderFactory
from kvtrove.server.chat.tool_format import ToolFormat, Written


def _parameters(head: str, opening: str, closing: str, end: str) -> ReaderFactory:
    first, second = re.compile(head), re.compile(opening)
    return lambda types: ParameterReader(types, first, second, closing, end)


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
_MINIMAX = "]<]minimax[>["  # before every tag
_MINIMAX_PATTERN = re.escape(_MINIMAX)
PARAMETER_FORMS = (
    _invoke("deepseek_v32", "｜DSML｜function_calls", "｜DSML｜"),
    _invoke("deepseek_v4", "｜DSML｜tool_calls", "｜DSML｜"),
    _invoke("minimax_m2", "minimax:tool_call", ""),
    ToolFormat(
        "minimax_m3",
        CallSyntax(
            _parameters(
                _MINIMAX_PATTERN + r'<invoke name="([^"<>]{1,256})">',
                _MINIMAX_PATTERN + r"<([^<>/]{1,256})>",
                _MINIMAX + "</{key}>",
                _MINIMAX + "</invoke>",
            ),
            (_MINIMAX + "<tool_call>",),
            (_MINIMAX + "</tool_call>",),
            _MINIMAX_PATTERN + "<invoke ",
            lead=" \t\r\n",
        ),
        Written(
            f'{_MINIMAX}<invoke name="{{name}}">',
            f"{_MINIMAX}</invoke>\n",
            "",
            f"{_MINIMAX}<tool_call>\n",
            f"{_MINIMAX}</tool_call>",
            "parameters",
            _MINIMAX + "<{key}>",
            _MINIMAX + "</{key}>",
        ),
    ),
    _invoke("muse", "atem:function_calls", "atem:"),
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
    ToolFormat(
        "hunyuan",
        CallSyntax(
            _parameters(
                r"<tool_call:opensource>([^<>{}\n]{1,256})<tool_sep:opensource>",
                r"<arg_key:opensource>([^<>]{1,256})</arg_key:opensource>\s*<arg_value:opensource>",
                "</arg_value:opensource>",
                "</tool_call:opensource>",
            ),
            ("<tool_calls:opensource>",),
            ("</tool_calls:opensource>",),
            "<tool_call:opensource>",
            lead=" \t\r\n",
        ),
        Written(
            "<tool_call:opensource>{name}<tool_sep:opensource>\n",
            "</tool_call:opensource>\n",
            "",
            "<tool_calls:opensource>\n",
            "</tool_calls:opensource>",
            "parameters",
            "<arg_key:opensource>{key}</arg_key:opensource>\n<arg_value:opensource>",
            "</arg_value:opensource>\n",
        ),
        ("hy_v3",),
    ),
    ToolFormat(
        "kimi_k3",
        CallSyntax(
            _parameters(
                r'<\|open\|>call tool="([^"<>]{1,256})"[^<>]{0,64}<\|sep\|>',
                r'<\|open\|>argument key="([^"<>]{1,256})"[^<>]{0,64}<\|sep\|>',
                "<|close|>argument<|sep|>",
                "<|close|>call<|sep|>",
            ),
            ("<|open|>tools<|sep|>",),
            ("<|close|>tools<|sep|>",),
            r"<\|open\|>call ",
            lead=" \t\r\n",
        ),
        Written(
            '<|open|>call tool="{name}" index="1"<|sep|>',
            "<|close|>call<|sep|>",
            None,
            "<|open|>tools<|sep|>",
            "<|close|>tools<|sep|>",
            "parameters",
            '<|open|>argument key="{key}" type="{type}"<|sep|>',
            "<|close|>argument<|sep|>",
        ),
    ),
    ToolFormat(
        "gemma4",
        CallSyntax(
            lambda types: GemmaReader(),
            (),
            direct=("<|tool_call>",),
            starts=r"<\|tool_call>",
            lead="",
            separators=("<tool_call|>", "<|tool_response>"),
        ),
        Written(
            "<|tool_call>call:{name}{",
            "}<tool_call|>",
            "",
            kind="parameters",
            opening="{key}:",
            joint=",",
            quote='<|"|>',
        ),
    ),
    _xml("qwen3_coder", "<tool_call>", "</tool_call>", "\n", ("qwen3_xml", "mimo", "step3p5")),
    _xml("seed_oss", "<seed:tool_call>", "</seed:tool_call>", ""),
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
)
