"""Grammars: what they allow token by token, and that every sequence of a request keeps its own place in one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtrove.demo import demo_model_dir
from kvtrove.request import RequestError
from kvtrove.server.chat.call_grammar import call_grammar, spelling
from kvtrove.server.chat.tool_format import TOOL_FORMATS
from kvtrove.server.guidance import Grammar, Grammars, TokenGuide
from kvtrove.text.tokenizer import Tokenizer
from tests.server.live import VOCAB

EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo_model_dir())


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer.backend, tokenizer.vocab_size, (EOS,))


def allowed(guide: TokenGuide) -> NDArray[np.int64]:
    mask = guide.mask()
    assert mask.dtype == np.int32
    assert mask.shape == (-(-VOCAB // 32),)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def write(guide: TokenGuide, tokenizer: Tokenizer, text: str) -> None:
    for token in tokenizer.encode(text, add_special_tokens=False):
        assert token in allowed(guide), f"{tokenizer.token_text(token)!r} of {text!r} is not allowed"
        guide.accept(token)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


CALL = '{"name": "f", "%s": {"a": 1}}'


def forced(format: str, parallel: bool) -> str:
    return call_grammar(TOOL_FORMATS[format], TOOLS, parallel, spelling({}))


TEXTS = [
    (Grammar("json_schema", SCHEMA, "x"), '{"a": 12}'),
    (Grammar("json_schema", {"type": "object"}, "x"), '{"any": [1, {"b": null}]}'),
    (Grammar("regex", "[a-c]+x", "x"), "abcx"),
    (Grammar("choice", ["yes", 'a "quoted" \\ one', "näh"], "x"), 'a "quoted" \\ one'),
    (Grammar("choice", ["yes", "näh"], "x"), "näh"),
    (Grammar("lark", 'start: "a" ("," "a")*', "x"), "a,a,a"),
    (Grammar("lark", forced("hermes", False), "x"), f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>"),
    (Grammar("lark", forced("llama3", True), "x"), "; ".join([CALL % "parameters"] * 3)),
]


@pytest.mark.parametrize(("grammar", "text"), TEXTS)
def test_a_text_of_the_grammar_can_be_written_and_then_ended(
    grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, text: str
) -> None:
    guide = grammars.compile(grammar)
    assert EOS not in allowed(guide)
    write(guide, tokenizer, text)
    assert EOS in allowed(guide)
    guide.accept(EOS)
    assert list(allowed(guide)) == [EOS], "behind the end there is nothing but the end"


def test_other_texts_cannot(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.compile(Grammar("json_schema", SCHEMA, "x"))
    [letter] = tokenizer.encode("b", add_special_tokens=False)
    assert letter not in allowed(guide)
    guide.accept(letter)
    assert list(allowed(guide)) == [EOS], "a text that has left its grammar ends"


def test_copies_go_their_own_ways(grammars: Grammars, tokenizer: Tokenizer) -> None:
    first = grammars.compile(Grammar("regex", "a(b|c)d", "x"))
    write(first, tokenizer, "a")
    second = first.copy()
    write(first, tokenizer, "b")
    write(second, tokenizer, "c")
    write(first, tokenizer, "d")
    assert EOS in allowed(first)
    assert EOS not in allowed(second)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", {"type": "nonsense"}),
        ("json_schema", {"$ref": "file:///etc/passwd"}),
        ("json_schema", {"type": "string", "pattern": "(("}),
        ("regex", "(("),
        ("lark", "start: missing"),
        ("lark", "no grammar"),
    ],
)
def test_a_wrong_grammar_is_refused_in_one_line(grammars: Grammars, kind: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=r"^field: ") as error:
        grammars.compile(Grammar(kind, value, "field"))
    assert error.value.param == "field"
    assert "\n" not in str(error.value)
    assert "root:" not in str(error.value)


def test_the_size_of_a_grammar_is_that_of_its_text() -> None:
    assert Grammar("regex", "a" * 10, "x").size == 10
    assert Grammar("json_schema", SCHEMA, "x").size == len(json.dumps(SCHEMA))


def chain(length: int) -> str:
    """A Lark grammar of rules, each of which names the next."""
    rules = [f'r{i}: "a" r{i + 1} | "b" r{i + 1}' for i in range(length)]
    return "\n".join(["start: r0", *rules, f'r{length}: "c"'])


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


REFERENCES = {f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1000)}
HOSTILE = [
    (Grammar("lark", chain(3500), "x"), "too deeply nested"),
    (Grammar("json_schema", {"$defs": REFERENCES | {"d1000": {}}, "$ref": "#/$defs/d0"}, "x"), "too deeply nested"),
    (Grammar("regex", "((a{1000}){1000}){1000}", "x"), "too complex"),
    (Grammar("regex", "(a?){300}a{300}", "x"), "too complex"),
    (Grammar("lark", 'start: "a" start', "x"), "never ends"),
    (Grammar("json_schema", nested(121), "x"), "levels deep"),
]


@pytest.mark.parametrize(("grammar", "words"), HOSTILE)
def test_a_grammar_that_would_end_the_process_is_refused(grammars: Grammars, grammar: Grammar, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        grammars.compile(grammar)
    assert grammars.compile(Grammar("regex", "ab", "x")).problem is None, "the next one finds everything in order"


WIDE = {f"p{i}": {"type": "integer"} for i in range(700)}
LARGE = [
    (Grammar("choice", [f"label-{i:04d}" for i in range(2500)], "x"), "label-1234"),
    (Grammar("json_schema", {"type": "object", "properties": WIDE}, "x"), '{"p3": 1, "p699": 2}'),
    (Grammar("json_schema", nested(80), "x"), '{"a": ' * 80 + "7" + "}" * 80),
]


@pytest.mark.parametrize(("grammar", "text"), LARGE)
def test_large_grammars_are_served(grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, text: str) -> None:
    guide = grammars.compile(grammar)
    write(guide, tokenizer, text)
    assert EOS in allowed(guide)
    assert guide.problem is None


def test_an_output_outside_its_grammar_says_so(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.compile(Grammar("regex", "abc", "field"))
    [letter] = tokenizer.encode("x", add_special_tokens=False)
    assert not guide.meets([letter])
    guide.accept(letter)
    assert guide.problem is not None
    assert guide.problem.startswith("field: ")
