"""Grammars: what they allow token by token, and that every sequence of a request keeps its own place in one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtrove.demo import demo_model_dir
from kvtrove.request import RequestError
from kvtrove.server.chat.answer import AnswerSyntax
from kvtrove.server.chat.call_grammar import call_grammar, spelling
from kvtrove.server.chat.events import CallBegins
from kvtrove.server.chat.thoughts import THOUGHTS
from kvtrove.server.chat.tool_format import Written
from kvtrove.server.chat.tool_forms import TOOL_FORMATS
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


def forced(format: str, parallel: bool) -> Grammar:
    return call_grammar(TOOL_FORMATS[format], TOOLS, parallel, spelling({}))


TEXTS = [
    (Grammar("json_schema", SCHEMA, "x"), '{"a": 12}'),
    (Grammar("json_schema", {"type": "object"}, "x"), '{"any": [1, {"b": null}]}'),
    (Grammar("regex", "[a-c]+x", "x"), "abcx"),
    (Grammar("choice", ["yes", 'a "quoted" \\ one', "näh"], "x"), 'a "quoted" \\ one'),
    (Grammar("choice", ["yes", "näh"], "x"), "näh"),
    (Grammar("lark", 'start: "a" ("," "a")*', "x"), "a,a,a"),
    (forced("hermes", False), f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>"),
    (forced("llama3", True), "; ".join([CALL % "parameters"] * 3)),
]


def in_form(w: Written, **arguments: str) -> str:
    """A call of `f` with these arguments, which are JSON, as the form writes it."""
    values = {name: json.loads(value) for name, value in arguments.items()}
    parts = []
    for name, value in values.items():
        opening, closing = (part.replace("{key}", name) for part in (w.opening, w.closing))
        is_text = w.kind == "parameters" and isinstance(value, str)
        opening = opening.replace("{string}", "true" if is_text else "false")
        opening = opening.replace("{type}", "string" if is_text else "number")
        written = f"{w.quote}{value}{w.quote}" if is_text else json.dumps(value)
        parts.append(opening + written + closing)
    inner = json.dumps(values) if w.kind == "object" else w.joint.join(parts)
    return w.head + w.before.replace("{name}", "f") + inner + w.after + w.tail


@pytest.mark.parametrize("format", sorted({f.name for f in TOOL_FORMATS.values()}))
def test_a_forced_call_is_read_back_in_every_form(grammars: Grammars, tokenizer: Tokenizer, format: str) -> None:
    properties = {"a": {"type": "integer"}, "q": {"type": "string"}, "one": {"enum": ["x", "y"]}}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = in_form(TOOL_FORMATS[format].written, a="12", q='"so it is"', one='"x"')
    guide = grammars.compile(call_grammar(TOOL_FORMATS[format], tools, False, spelling({})))
    write(guide, tokenizer, text)
    assert EOS in allowed(guide)
    thoughts = "harmony" if format == "harmony" else "none"
    parser = AnswerSyntax(TOOL_FORMATS[format], THOUGHTS[thoughts]).parser(tools, forced=True)
    begins, *pieces = [*parser.push(text), *parser.finish()]
    assert isinstance(begins, CallBegins)
    assert begins.name == "f"
    assert json.loads("".join(piece.text for piece in pieces)) == {"a": 12, "q": "so it is", "one": "x"}


def test_what_a_forced_call_cannot_enforce_is_told(grammars: Grammars) -> None:
    schema = {**SCHEMA, "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for format, told in (("hermes", "f: uniqueItems at #/properties/a"), ("qwen3_coder", "f.a: uniqueItems at #")):
        grammar = call_grammar(TOOL_FORMATS[format], tools, False, spelling({}))
        assert grammars.compile(grammar).relaxed == (told,)


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


def array(**more: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"enum": ["a", "b"]}, **more}


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


RELAXED = [
    (thing(t=array(uniqueItems=True)), '{"t": ["a", "a"]}', "uniqueItems at #/properties/t"),
    (thing(t={"type": "integer", "not": {"const": 1}}), '{"t": 1}', "not at #/properties/t"),
    (thing(t={"type": "string", "pattern": "^(?!x)a$"}), '{"t": "x"}', "pattern at #/properties/t"),
    (thing(t={"type": "string", "pattern": r"\bfoo"}), '{"t": "x"}', "pattern at #/properties/t"),
    (thing(t=array(contains={"const": "a"})), '{"t": ["b"]}', "contains at #/properties/t"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1", "oneOf whose branches may overlap"),
    (thing(a={"type": "null"}) | {"dependentRequired": {"a": ["b"]}}, '{"a": null}', "dependentRequired at #"),
]


@pytest.mark.parametrize(("schema", "text", "what"), RELAXED)
def test_what_cannot_be_enforced_is_refused_or_relaxed_and_told(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], text: str, what: str
) -> None:
    with pytest.raises(RequestError, match=what.split()[0]) as error:
        grammars.compile(Grammar("json_schema", schema, "response_format"))
    assert what.split()[-1] in str(error.value) or what.startswith("oneOf")
    guide = grammars.compile(Grammar("json_schema", schema, "response_format", lenient=True))
    assert guide.relaxed == (what,)
    write(guide, tokenizer, text)
    assert EOS in allowed(guide)


ENFORCED = [
    (thing(t={"type": "string", "format": "password"}), '{"t": "x"}', None),
    (thing(t=array(uniqueItems=False)), '{"t": ["a", "a"]}', None),
    ({"type": "object", "propertyNames": {"enum": ["x"]}, "minProperties": 1}, '{"x": 1}', '{"y'),
    ({"type": "object", "propertyNames": {"pattern": "^k[0-9]$"}, "minProperties": 1}, '{"k1": 1}', '{"x'),
    (
        thing(a={"type": "null"}) | {"additionalProperties": True, "unevaluatedProperties": False},
        '{"a": null, "b',
        None,
    ),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False, "required": ["a"]},
        '{"a": null}',
        '{"b',
    ),
    ({"type": "array", "maxItems": 1.0, "uniqueItems": True, "items": {"type": "null"}}, "[null]", "[null,"),
]


@pytest.mark.parametrize(("schema", "text", "wrong"), ENFORCED)
def test_annotations_are_ignored_and_equals_are_enforced(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], text: str, wrong: str | None
) -> None:
    grammar = Grammar("json_schema", schema, "x")
    write(grammars.compile(grammar), tokenizer, text)
    if wrong is not None:
        with pytest.raises(AssertionError, match="is not allowed"):
            write(grammars.compile(grammar), tokenizer, wrong)


def test_a_schema_can_ask_for_leniency_itself_and_stays_compact(grammars: Grammars, tokenizer: Tokenizer) -> None:
    schema = thing(t=array(uniqueItems=True)) | {"x-guidance": {"lenient": True}}
    guide = grammars.compile(Grammar("json_schema", schema, "guided_json"))
    [space] = tokenizer.encode(" ", add_special_tokens=False)
    guide.accept(tokenizer.encode("{", add_special_tokens=False)[0])
    assert space not in allowed(guide)


ENDLESS = [
    {"type": "object", "properties": {"n": {"type": "integer"}, "a": {"$ref": "#"}}, "required": ["n", "a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}}, "required": ["a"]},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_that_no_finite_text_fits_is_refused(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no text fits"):
        grammars.compile(Grammar("json_schema", schema, "x"))


CLEAR = [
    (thing(t={"type": "string", "pattern": "(("}), r"'\(\(' cannot be read: unclosed group \(at #/properties/t\)"),
    (thing(t={"type": "text"}), "type at #/properties/t: 'text' is none of object"),
    (thing(t={"$ref": "http://a/b"}), "outside of the schema"),
    (thing(t=5), "#/properties/t: a schema is an object"),
]


@pytest.mark.parametrize(("schema", "words"), CLEAR)
def test_errors_name_the_place(grammars: Grammars, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        grammars.compile(Grammar("json_schema", schema, "x", lenient=True))
