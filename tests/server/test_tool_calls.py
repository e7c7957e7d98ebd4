"""Tool calls in a model's text: found whole, found in pieces, and left alone where there are none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.server.chat.call_scanner import CallScanner
from kvtrove.server.chat.tool_calls import CallArguments, CallBegins, HermesParser, Llama3Parser, Text, ToolCallParser
from kvtrove.server.chat.tool_format import call_grammar, detect_format

NAMES = ("f", "g", "look_up")
Result = tuple[str, list[tuple[str, str]]]


def parse(parser: ToolCallParser, pieces: Sequence[str]) -> Result:
    """(content, [(name, arguments), ...])"""
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallBegins):
            assert event.index == len(calls), "calls are numbered in order"
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            calls[event.index][1] += event.text
    content = "".join(event.text for event in events if isinstance(event, Text))
    return content, [(name, arguments) for name, arguments in calls]


def cut(text: str, at: Sequence[int]) -> list[str]:
    points = sorted({min(i, len(text)) for i in at} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(points)]


def call(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


HERMES = [
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
]
LLAMA = [
    ("Hello {name}.", ("Hello {name}.", [])),
    (call("f", {"a": 1}, "parameters"), ("", [("f", '{"a": 1}')])),
    ("<|python_tag|>" + call("look_up", {}, "parameters"), ("", [("look_up", "{}")])),
    (f"{call('f', {}, 'parameters')}; {call('g', {}, 'parameters')}", ("", [("f", "{}"), ("g", "{}")])),
    ('{"answer": 42}', ('{"answer": 42}', [])),
    ('{"name": "Bob", "parameters": {"age": 3}} is he', ('{"name": "Bob", "parameters": {"age": 3}} is he', [])),
    ('  {"name": "f", "parameters": {"q": "cut', ("", [("f", '{"q": "cut')])),
    ("{", ("{", [])),
    ("<|python", ("<|python", [])),
]


@pytest.mark.parametrize(("text", "expected"), HERMES)
def test_hermes_calls(text: str, expected: Result) -> None:
    assert parse(HermesParser(), [text]) == expected
    assert parse(HermesParser(), list(text)) == expected


@pytest.mark.parametrize(("text", "expected"), LLAMA)
def test_llama_calls(text: str, expected: Result) -> None:
    assert parse(Llama3Parser(NAMES), [text]) == expected
    assert parse(Llama3Parser(NAMES), list(text)) == expected


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
        *('"parameters"', '"name"', '"f"', "{", "}", '"', "\\", ":", " ", "\n", ";", "é"),
        *(call("f", {"k": 1}), call("g", {}, "parameters")),
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join), st.lists(st.integers(0, 120), max_size=10))
def test_the_cuts_make_no_difference(text: str, at: list[int]) -> None:
    """Whatever the text: one push, arbitrary pieces and single characters give the same content and calls."""
    for make in (HermesParser, lambda: Llama3Parser(NAMES)):
        whole = parse(make(), [text])
        assert parse(make(), cut(text, at)) == whole
        assert parse(make(), list(text)) == whole


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_text_without_tags_comes_out_as_it_went_in(text: str, at: list[int]) -> None:
    if "<tool_call>" not in text:
        assert parse(HermesParser(), cut(text, at)) == (text, [])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), st.booleans())
def test_any_arguments_come_through(name: str, arguments: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    content, [(found, written)] = parse(HermesParser(), list(f"<tool_call>\n{text}\n</tool_call>"))
    assert (content, found, json.loads(written)) == ("", name, arguments)
    assert written == json.dumps(arguments, ensure_ascii=ascii_only), "as the model wrote it"


def test_a_scanner_stops_where_its_object_ends() -> None:
    scanner = CallScanner()
    text = call("f", {"a": 1}) + " and more"
    assert scanner.push(text) == text.index(" and")
    assert (scanner.done, scanner.name, scanner.arguments) == (True, "f", '{"a": 1}')


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("", "hermes"),
        ('{"name": x, "parameters": y}', "llama3"),
        ("<|python_tag|>", "llama3"),
        ('<tool_call> "parameters"', "hermes"),
    ],
)
def test_the_format_is_read_off_the_template(template: str, format: str) -> None:
    assert detect_format(template) == format


@pytest.mark.parametrize(("format", "key"), [("hermes", "arguments"), ("llama3", "parameters")])
def test_a_grammar_names_every_tool(format: Any, key: str) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in NAMES]
    grammar = call_grammar(format, tools, parallel=True)
    assert all(f'"const": "{name}"' in grammar for name in NAMES)
    assert f'"{key}"' in grammar
