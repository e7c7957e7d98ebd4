"""Grammars of forced tool calls, in the form that the model itself writes, and of answers behind a thought."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtrove.server.chat.thoughts import ThoughtFormat
from kvtrove.server.chat.tool_format import Tool, ToolFormat, Written
from kvtrove.server.chat.tool_schema import allowed_types, arguments_schema
from kvtrove.server.guidance import Grammar
from kvtrove.server.json_schema import prepare

Spell = Callable[[str], str]
"""A plain text in Lark's notation."""


def spelling(added_tokens: Mapping[str, int]) -> Spell:
    """Texts for one tokenizer. added_tokens: text -> id of those that are no ordinary text; models write a mark as the
    one token that it is, and a grammar has to ask for that token by its id.
    """
    known = sorted((text for text in added_tokens if text), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, known)) + ")") if known else None

    def spell(text: str) -> str:
        parts = [text] if pattern is None else pattern.split(text)
        spelled = (f"<[{added_tokens[p]}]>" if p in added_tokens else json.dumps(p) for p in parts if p)
        return " ".join(spelled) or '""'

    return spell


def call_grammar(format: ToolFormat, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Grammar:
    """An answer that is one call of one of the tools or, if `parallel` and the form has room for several, one or more.

    What the tools' schemas say and cannot be enforced is left out unless the tool is strict: callers check anyway.
    """
    calls = _CallGrammar(format.written, spell)
    source = calls.source(tools, parallel)
    return Grammar("lark", source, "tools", left_out=tuple(dict.fromkeys(calls.left_out)))


class _CallGrammar:
    def __init__(self, written: Written, spell: Spell) -> None:
        self._written, self._spell = written, spell
        self._rules: list[str] = []
        self.left_out: list[str] = []

    def source(self, tools: Sequence[Tool], parallel: bool) -> str:
        written, spell = self._written, self._spell
        calls = [self._call(n, tool["function"]) for n, tool in enumerate(tools)]
        more = "" if not parallel or written.between is None else f"({_maybe(written.between, spell)} call)*"
        start = [_maybe(written.head, spell), "call", more, _maybe(written.tail, spell)]
        return "\n".join(["start: " + " ".join(filter(None, start)), "call: " + " | ".join(calls), *self._rules, ""])

    def _call(self, n: int, function: Mapping[str, Any]) -> str:
        written, spell = self._written, self._spell
        before, after = written.before.replace("{name}", function["name"]), _maybe(written.after, spell)
        schema, strict = arguments_schema(function.get("parameters")), function.get("strict") is True
        body = (
            self._rule(f"args{n}", self._json(schema, strict, function["name"]))
            if written.kind == "object"
            else self._parameters(n, schema, strict, function["name"])
        )
        self._rule(f"call{n}", " ".join(filter(None, [_maybe(before, spell), body, after])))
        return f"call{n}"

    def _rule(self, name: str, body: str) -> str:
        self._rules.append(f"{name}: {body}")
        return name

    def _json(self, schema: Mapping[str, Any], strict: bool, where: str) -> str:
        given = schema if strict else {**schema, "x-guidance": {"coerce_one_of": True}}
        prepared = prepare(given, "tools", lenient=not strict)
        self.left_out += [f"{where}: {relaxed}" for relaxed in prepared.relaxed]
        return "%json " + json.dumps(prepared.schema)

    def _parameters(self, n: int, schema: Mapping[str, Any], strict: bool, where: str) -> str:
        """All that are required and perhaps the others, in the order of the schema."""
        required = set(schema.get("required") or ())
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        parts: list[str] = []
        joint = _maybe(self._written.joint, self._spell)
        for m, (key, inner) in enumerate((schema.get("properties") or {}).items()):
            rule = self._rule(f"param{n}_{m}", self._parameter(f"{n}_{m}", key, inner, shared, strict, where))
            item = f"{joint} {rule}" if joint and parts else rule
            parts.append(item if key in required or (joint and not parts) else f"({item})?")
        return " ".join(parts)

    def _parameter(self, at: str, key: str, schema: Any, shared: Mapping[str, Any], strict: bool, where: str) -> str:
        written, spell = self._written, self._spell
        inner = schema if isinstance(schema, Mapping) else {}
        is_text = written.kind == "parameters" and ("string" in (allowed_types(inner) or {"string"}))
        opening = written.opening.replace("{key}", key).replace("{string}", "true" if is_text else "false")
        opening = opening.replace("{type}", "string" if is_text else _type_of(inner))
        closing = written.closing.replace("{key}", key)
        if not is_text:
            value = self._rule(f"value{at}", self._json({**inner, **shared}, strict, f"{where}.{key}"))
            return " ".join(filter(None, [_maybe(opening, spell), value, _maybe(closing, spell)]))
        opening, closing = opening + written.quote, written.quote + closing
        choices = inner.get("enum") if isinstance(inner.get("enum"), list) else None
        if "const" in inner:
            choices = [inner["const"]]
        if choices and all(isinstance(choice, str) for choice in choices):
            value = "(" + " | ".join(spell(choice) for choice in choices) + ")"
            return f"{spell(opening)} {value} {spell(closing)}"
        return f"{spell(opening)} {self._text_until(at, closing)}"

    def _text_until(self, at: str, mark: str) -> str:
        return text_until(f"text{at}", mark, self._spell, self._rules)


def text_until(name: str, mark: str, spell: Spell, rules: list[str]) -> str:
    """Any text and the mark behind it. A mark that begins with a token of its own ends the text by that token."""
    spelled = spell(mark)
    if "<[" in spelled:
        rules.append(f"{name.upper()}: /(.|\\n)*/")
        return f"{name.upper()} {spelled}"
    rules.append(f"{name}[suffix={json.dumps(mark)}]: /(.|\\n)*/")
    return name


def _type_of(schema: Mapping[str, Any]) -> str:
    """Kimi K3's word for the type of a value that is no string."""
    found = (allowed_types(schema) or {"object"}) - {"null"}
    name = min(found, default="null")
    return "number" if name == "integer" else name


def _maybe(text: str, spell: Spell) -> str:
    return spell(text) if text else ""


@dataclass(frozen=True)
class AfterThought(Grammar):
    """A grammar that holds from where the thought ends. lead: Lark rules, with `@answer` for the rest."""

    lead: str = ""

    def source(self) -> tuple[str, list[str]]:
        inner, relaxed = super().source()
        grammars = json.loads(inner)["grammars"] if inner.lstrip().startswith("{") else [{"lark_grammar": inner}]
        grammars[0] = {**grammars[0], "name": "answer"}
        return json.dumps({"grammars": [{"lark_grammar": self.lead}, *grammars]}), relaxed


def after_thought(grammar: Grammar, thoughts: ThoughtFormat, is_open: bool, spell: Spell) -> Grammar:
    """The grammar of a whole answer whose part behind the thought must follow `grammar`.

    is_open: the thought has begun already; else the model may begin with one. A choice, regex or Lark grammar that
    mentions the marks describes the thought itself, and stays as it is.
    """
    rules: list[str] = []
    if thoughts.name == "harmony":
        until = text_until("thought", "<|end|>", spell, rules)
        thought = f"{spell('<|channel|>analysis<|message|>')} {until} {spell('<|start|>assistant')}"
        opening = "" if grammar.param == "tools" else spell("<|channel|>final<|message|>")
        return _led(grammar, f"({thought})? {opening} @answer", rules)
    described = grammar.kind != "json_schema" and grammar.param != "tools" and thoughts.close in _texts(grammar.value)
    if not thoughts.open or described:
        return grammar
    rest = f"{text_until('thought', thoughts.close, spell, rules)} /\\n{{0,2}}/"
    return _led(grammar, f"{rest} @answer" if is_open else f"({spell(thoughts.open)} {rest})? @answer", rules)


def _led(grammar: Grammar, start: str, rules: Sequence[str]) -> AfterThought:
    lead = "\n".join([f"start: {start}", *rules, ""])
    return AfterThought(grammar.kind, grammar.value, grammar.param, grammar.lenient, grammar.left_out, lead)


def _texts(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))
