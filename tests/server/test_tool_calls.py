"""Tool calls and thoughts in a model's text: found whole, found in pieces, and left alone where there are none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.config import ConfigError
from kvtrove.server.chat.answer import AnswerSyntax
from kvtrove.server.chat.call_scanner import CallScanner
from kvtrove.server.chat.events import CallArguments, CallBegins, Reasoning, Text
from kvtrove.server.chat.thoughts import THOUGHTS, opens_thought, thoughts_named
from kvtrove.server.chat.tool_forms import TOOL_FORMATS, format_named

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "q": {"type": "string"}, "on": {"type": "boolean"}, "any": {}},
}
NAMES = ("f", "g", "look_up")
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in NAMES]
Result = tuple[str, str, list[tuple[str, str]]]


def parse(format: str, pieces: Sequence[str], thoughts: str = "think", **options: Any) -> Result:
    """(thought, content, [(name, arguments), ...])"""
    parser = AnswerSyntax(TOOL_FORMATS[format], THOUGHTS[thoughts]).parser(TOOLS, **options)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallBegins):
            assert event.index == len(calls), "calls are numbered in order"
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            calls[event.index][1] += event.text
    content = "".join(event.text for event in events if isinstance(event, Text))
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    return thought, content, [(name, arguments) for name, arguments in calls]


def cut(text: str, at: Sequence[int]) -> list[str]:
    points = sorted({min(i, len(text)) for i in at} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(points)]


def call(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


F = [("f", '{"a": 5, "q": "x\\ny"}')]
FG = [("f", '{"a": 1}'), ("g", "{}")]
CASES: dict[str, list[tuple[str, tuple[str, list[tuple[str, str]]]]]] = {
    "hermes": [
        ("Hello.", ("Hello.", [])),
        ("", ("", [])),
        ("a < b and <tool", ("a < b and <tool", [])),
        (f"<tool_call>\n{call('f', {'a': [1, '}<']})}\n</tool_call>", ("", [("f", '{"a": [1, "}<"]}')])),
        (f"Let me see.\n\n<tool_call>{call('f', {})}</tool_call>", ("Let me see.", [("f", "{}")])),
        (
            f"<tool_call>{call('f', {})}</tool_call>\n<tool_call>{call('g', {'x': None})}</tool_call>\n",
            ("", [("f", "{}"), ("g", '{"x": null}')]),
        ),
        ('<tool_call>{"arguments": {"b": 2}, "name": "g"}</tool_call>', ("", [("g", '{"b": 2}')])),
        ('<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', ("", [("f", "[1]")])),
        ('<tool_call>{"name": "f", "arguments": {"n":1,}}</tool_call>', ("", [("f", '{"n":1,}')])),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("f", '{"a": 1}')])),
        (
            '<tool_call>{"name": "f", "id": 7, "arguments": {"q": "\\"}\\\\"}}</tool_call>',
            ("", [("f", '{"q": "\\"}\\\\"}')]),
        ),
        ("x <tool_call>no call</tool_call> y", ("x <tool_call>no call</tool_call> y", [])),
        (
            '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
            ('<tool_call>{"name": 7, "arguments": {}}</tool_call>', []),
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut sh', ("", [("f", '{"a": "cut sh')])),
        ('<tool_call>{"na', ('<tool_call>{"na', [])),
        (f"<tool_call>{call('f', {})}\n<tool_call>{call('g', {})}</tool_call>", ("", [("f", "{}"), ("g", "{}")])),
        (f"<tool_call>{call('f', {})}</tool_call>\nDone", ("\nDone", [("f", "{}")])),
        (call("f", {"a": 1}), ("", [("f", '{"a": 1}')])),
        (f"```json\n{call('f', {'a': 1})}\n```", ("", [("f", '{"a": 1}')])),
        (call("unknown", {"a": 1}), (call("unknown", {"a": 1}), [])),
        ("```python\nprint()\n```", ("```python\nprint()\n```", [])),
        (f"<tool_call>{call('f', {'a': 1})}</tool_call>\n<tool_call", ("", FG[:1])),
        (f"<tool_call>{call('f', {'a': 1})}</tool_call>\n<tool_call>\n{{", ("", FG[:1])),
    ],
    "llama3": [
        ("Hello {name}.", ("Hello {name}.", [])),
        (call("f", {"a": 1}, "parameters"), ("", [("f", '{"a": 1}')])),
        ("<|python_tag|>" + call("look_up", {}, "parameters"), ("", [("look_up", "{}")])),
        (f"{call('f', {}, 'parameters')}; {call('g', {}, 'parameters')}", ("", [("f", "{}"), ("g", "{}")])),
        ('{"answer": 42}', ('{"answer": 42}', [])),
        ('{"name": "Bob", "parameters": {"age": 3}} is he', ('{"name": "Bob", "parameters": {"age": 3}} is he', [])),
        ('  {"name": "f", "parameters": {"q": "cut', ("", [("f", '{"q": "cut')])),
        ("{", ("{", [])),
        ("<|python", ("<|python", [])),
    ],
    "mistral": [
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{}', ("", FG)),
        (f"Hm. [TOOL_CALLS][{call('f', {'a': 1})}, {call('g', {})}]", ("Hm.", FG)),
        (f"[TOOL_CALLS] [{call('f', {'a': 1})}]", ("", FG[:1])),
        ("[TOOL_CALLS]f[ARGS]", ("[TOOL_CALLS]f[ARGS]", [])),
        ("[TOOL", ("[TOOL", [])),
    ],
    "qwen3_coder": [
        (
            "Ok\n<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=q>\nx\ny\n</parameter>\n"
            "</function>\n</tool_call>",
            ("Ok", F),
        ),
        ("<function=f>\n<parameter=on>\ntrue\n</parameter>\n</function> end", (" end", [("f", '{"on": true}')])),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>", ("", [("f", "{}")])),
        (
            "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>"
            "<tool_call><function=g></function></tool_call>",
            ("", FG),
        ),
        ("<tool_call>\n<function=f>\n<parameter=q>\n7\n</parameter></function>", ("", [("f", '{"q": "7"}')])),
    ],
    "glm": [
        (
            "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>5</arg_value>\n<arg_key>q</arg_key>\n"
            "<arg_value>x\ny</arg_value>\n</tool_call>",
            ("", F),
        ),
        ("<tool_call>g</tool_call>", ("", [("g", "{}")])),
    ],
    "minimax_m2": [
        (
            '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">5</parameter>\n'
            '<parameter name="q">x\ny</parameter>\n</invoke>\n</minimax:tool_call>',
            ("", F),
        ),
    ],
    "deepseek_v32": [
        (
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="false">5'  # noqa: RUF001
            '</｜DSML｜parameter>\n<｜DSML｜parameter name="q" string="true">x\ny</｜DSML｜parameter>\n'  # noqa: RUF001
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",  # noqa: RUF001
            ("", F),
        ),
    ],
    "deepseek": [
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"  # noqa: RUF001
            '{"a": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```'  # noqa: RUF001
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
            ("", FG),
        ),
    ],
    "deepseek_v31": [
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'  # noqa: RUF001
            "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
            ("", FG),
        ),
    ],
    "kimi_k2": [
        (
            '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}'
            "<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
            "<|tool_calls_section_end|>",
            ("", FG),
        ),
    ],
    "functionary": [('<function=f>{"a": 1}</function><function=g>{}</function>', ("", FG))],
    "pythonic": [
        ("<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>Done", ("Done", FG)),
        ("[f(q='it\\'s (', on=True)]", ("", [("f", '{"q": "it\'s (", "on": true}')])),
        ("[1, 2]", ("[1, 2]", [])),
        ("[unknown()]", ("[unknown()]", [])),
    ],
    "nemotron": [(f"<TOOLCALL>[{call('f', {'a': 1})}, {call('g', {})}]</TOOLCALL>", ("", FG))],
    "cohere": [
        (
            '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|>',
            ("", FG[:1]),
        ),
    ],
    "apertus": [
        ('<|tools_prefix|>[{"f": {"a": 1}}, {"g": {}}]<|tools_suffix|>', ("", FG)),
        ("<|tools_prefix|>[no calls]", ("<|tools_prefix|>[no calls]", [])),
    ],
    "command_r_plus": [
        (
            'Action:\n```json\n[\n    {\n        "tool_name": "f",\n        "parameters": {"a": 1}\n    },\n'
            '    {"tool_name": "g", "parameters": {}}\n]```',
            ("", FG),
        ),
        ("Action: none", ("Action: none", [])),
    ],
    "kimi_k3": [
        (
            '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="a" type="number"<|sep|>1'
            '<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="g" index="2"<|sep|><|close|>call<|sep|>'
            "<|close|>tools<|sep|>",
            ("", FG),
        ),
    ],
    "minimax_m3": [
        (
            ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<a>5]<]minimax[>[</a>'
            "]<]minimax[>[<q>x\ny]<]minimax[>[</q>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
            ("", F),
        ),
    ],
    "hunyuan": [
        (
            "<tool_calls:opensource>\n<tool_call:opensource>f<tool_sep:opensource>\n<arg_key:opensource>a"
            "</arg_key:opensource>\n<arg_value:opensource>1</arg_value:opensource>\n</tool_call:opensource>\n"
            "<tool_call:opensource>g<tool_sep:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
            ("", FG),
        ),
    ],
    "gemma4": [
        ('<|tool_call>call:f{a:5,q:<|"|>x\ny<|"|>}<tool_call|>', ("", [("f", '{"a":5,"q":"x\\ny"}')])),
        ("Hm. <|tool_call>call:f{a:1}<tool_call|><|tool_call>call:g{}<tool_call|>", ("Hm.", [("f", '{"a":1}'), FG[1]])),
        (
            '<|tool_call>call:f{any:{b:[true,null,-1.5],<|"|>c d<|"|>:"}\\""}}<tool_call|>',
            ("", [("f", '{"any":{"b":[true,null,-1.5],"c d":"}\\""}}')]),
        ),
        ("<|tool_call>call:f{a b}<tool_call|>", ("<|tool_call>call:f{a b}<tool_call|>", [])),
    ],
    "functionary_v3.2": [
        ('all\nLet me see.>>>f\n{"a": 1}>>>g\n{}', ("Let me see.", FG)),
        ('f\n{"q": ">>>g "}', ("", [("f", '{"q": ">>>g "}')])),
        ("all\n>>> 1 + 1\n>>>all of it", (">>> 1 + 1\n>>>all of it", [])),
        ("leaves the form", ("leaves the form", [])),
    ],
}
EVERY = [(format, text, expected) for format, rows in CASES.items() for text, expected in rows]


@pytest.mark.parametrize(("format", "text", "expected"), EVERY)
def test_calls_are_found_wherever_the_text_is_cut(format: str, text: str, expected: Any) -> None:
    assert parse(format, [text]) == ("", *expected)
    assert parse(format, list(text)) == ("", *expected)
    for at in range(1, len(text)):
        assert parse(format, [text[:at], text[at:]]) == ("", *expected), f"cut at {at}"


PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            '{"name": "f"',
            ', "arguments": ',
            '{"a": "b"}',
            "<",
            "text",
        ),
        *('"parameters"', '"name"', '"f"', "{", "}", '"', "\\", ":", " ", "\n", ";", "é", "<think>", "</think>"),
        *(
            "[TOOL_CALLS]",
            "f[ARGS]",
            "[",
            "]",
            "<function=f>",
            "</function>",
            "<parameter=a>",
            "</parameter>",
            "```json",
        ),
        *("<|tool_call_start|>", "f(a=1)", "(", ")", ","),
        *("<|tool_call>call:f{", "a:", '<|"|>', "<tool_call|>", "true", ">>>", "all\n", "f\n", '{"f": ', "Action:"),
        *("]<]minimax[>[", "<tool_call>", '<invoke name="f">', "<a>", "</a>", "</invoke>", "<|tools_prefix|>["),
        *(call("f", {"k": 1}), call("g", {}, "parameters")),
    ]
)


@given(
    st.sampled_from(sorted(set(TOOL_FORMATS))),
    st.lists(PIECES, max_size=14).map("".join),
    st.lists(st.integers(0, 160), max_size=10),
    st.booleans(),
)
def test_the_cuts_make_no_difference(format: str, text: str, at: list[int], in_thought: bool) -> None:
    """Whatever the text and the form: one push, arbitrary pieces and single characters give the same."""
    thoughts = "harmony" if format in ("harmony", "openai", "openai_gptoss", "gpt_oss") else "think"
    whole = parse(format, [text], thoughts, in_thought=in_thought)
    assert parse(format, cut(text, at), thoughts, in_thought=in_thought) == whole
    assert parse(format, list(text), thoughts, in_thought=in_thought) == whole


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_text_without_marks_comes_out_as_it_went_in(text: str, at: list[int]) -> None:
    if "<t" not in text and not text.lstrip().startswith(("{", "`", "<")):
        assert parse("hermes", cut(text, at)) == ("", text, [])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), st.booleans())
def test_any_arguments_come_through(name: str, arguments: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    _, content, [(found, written)] = parse("hermes", list(f"<tool_call>\n{text}\n</tool_call>"))
    assert (content, found, json.loads(written)) == ("", name, arguments)
    assert written == json.dumps(arguments, ensure_ascii=ascii_only), "as the model wrote it"


HARMONY = (
    "<|channel|>analysis<|message|>Hm, easy.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see."
    '<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>'
)
THINKING: list[tuple[str, str, bool, Result]] = [
    ("think", "<think>\nhm\n</think>\n\n42", False, ("hm", "42", [])),
    ("think", "hm, easy\n</think>\n\n42", True, ("hm, easy", "42", [])),
    ("think", "<think>hm</think>42", True, ("hm", "42", [])),
    ("think", "hm, ea", True, ("hm, ea", "", [])),
    ("think", "hm</thi", True, ("hm", "", [])),
    ("think", "a <think> is a mark", False, ("", "a <think> is a mark", [])),
    ("think", "<thi", False, ("", "<thi", [])),
    ("think", f"<think>maybe <tool_call>{call('f', {})}</tool_call> no</think>Done.", False,
     (f"maybe <tool_call>{call('f', {})}</tool_call> no", "Done.", [])),
    ("think", f"hm</think>\n<tool_call>{call('f', {})}</tool_call>", True, ("hm", "", [("f", "{}")])),
    ("mistral", "[THINK]hm[/THINK]42", False, ("hm", "42", [])),
    ("none", "<think>hm</think>42", False, ("", "<think>hm</think>42", [])),
    ("harmony", HARMONY, False, ("Hm, easy.", "Let me see.", [("f", '{"a": 1}')])),
    ("harmony", "<|channel|>final<|message|>42", False, ("", "42", [])),
    ("harmony", "<|channel|>analysis<|message|>cut sh", False, ("cut sh", "", [])),
    ("harmony", "leaves the form", False, ("", "leaves the form", [])),
    ("harmony", ' to=functions.g<|channel|>commentary json<|message|>{}', False, ("", "", [("g", "{}")])),
]  # fmt: skip


@pytest.mark.parametrize(("thoughts", "text", "in_thought", "expected"), THINKING)
def test_thoughts_are_told_from_answers(thoughts: str, text: str, in_thought: bool, expected: Result) -> None:
    assert parse("hermes", [text], thoughts, in_thought=in_thought) == expected
    assert parse("hermes", list(text), thoughts, in_thought=in_thought) == expected
    for at in range(1, len(text)):
        assert parse("hermes", [text[:at], text[at:]], thoughts, in_thought=in_thought) == expected, f"cut at {at}"


def test_a_prompt_says_whether_a_thought_is_open() -> None:
    think = THOUGHTS["think"]
    assert opens_thought(think, "<|im_start|>assistant\n<think>\n")
    assert not opens_thought(think, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thought(think, "user: what does <think> mean?\nassistant\n")
    assert opens_thought(think, "assistant\n<think>so far", "<think>so far")
    assert not opens_thought(think, "assistant\n<think>x</think>so far", "<think>x</think>so far")
    assert not opens_thought(THOUGHTS["none"], "<think>")


def test_one_call_is_enough_where_no_more_are_wanted() -> None:
    text = f"A <tool_call>{call('f', {})}</tool_call> <tool_call>{call('g', {})}</tool_call> B"
    assert parse("hermes", [text], most=1) == ("", "A", [("f", "{}")])
    assert parse("hermes", list(text), most=1) == ("", "A", [("f", "{}")])
    parser = AnswerSyntax(TOOL_FORMATS["hermes"], THOUGHTS["think"]).parser(TOOLS, most=1)
    parser.push(text[: text.index("</tool_call>")])
    assert parser.satisfied, "the sequence can end here"


@pytest.mark.parametrize("text", ["\n<tool_call", '<tool_call>\n{"na', "<tool_call>\n"])
def test_half_a_forced_call_is_no_content(text: str) -> None:
    assert parse("hermes", [text], forced=True) == ("", "", [])
    assert parse("hermes", list(text), forced=True) == ("", "", [])


def test_a_scanner_stops_where_its_object_ends() -> None:
    scanner = CallScanner()
    text = call("f", {"a": 1}) + " and more"
    assert scanner.push(text) == text.index(" and")
    assert (scanner.done, scanner.name, scanner.arguments) == (True, "f", '{"a": 1}')


def test_formats_have_one_name_each_and_vllms_beside() -> None:
    assert format_named("auto") is thoughts_named("auto") is None
    assert format_named("llama3_json") is TOOL_FORMATS["llama3"]
    assert thoughts_named("deepseek_r1") is THOUGHTS["think"]
    with pytest.raises(ConfigError, match=r"tool_format: 'hermess' is not one of auto, .*did you mean 'hermes'"):
        format_named("hermess")
    with pytest.raises(ConfigError, match=r"reasoning_parser: 'no' is not one of auto, none, harmony"):
        thoughts_named("no")
    registries: tuple[Mapping[str, Any], ...] = (TOOL_FORMATS, THOUGHTS)
    for registry in registries:
        names = [name for f in dict.fromkeys(registry.values()) for name in (f.name, *f.aliases)]
        assert len(names) == len(set(names)), "no name stands for two"
