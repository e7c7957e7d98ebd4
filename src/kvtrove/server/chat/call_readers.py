"""Readers of one tool call each, in the forms that are not one JSON object (that one: call_scanner)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kvtrove.server.chat.call_scanner import ObjectScanner
from kvtrove.server.chat.tool_schema import Types, allowed_types

LONGEST_NAME = 512  # characters up to the arguments; what goes on longer is no call
LONGEST_EXPRESSION = 200_000  # characters of a call written as Python


class CallReader(Protocol):
    """`push` reads characters and returns how many, fewer than all when the call ends among them.

    name and arguments are None until known; arguments only grow. broken: it is no call of this form.
    """

    name: str | None
    arguments: str | None
    done: bool
    broken: bool

    def push(self, text: str) -> int: ...


ReaderFactory = Callable[[Types], CallReader]


class NamedReader:
    """A name, marks, and the arguments as one JSON object: `f[ARGS]{...}`.

    head: matches all before the object; its group 1 is the name. braces: the object begins with the so-many-th `{`.
    """

    def __init__(self, head: re.Pattern[str], braces: int = 1) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._head, self._before, self._braces = head, "", braces
        self._object = ObjectScanner()

    def push(self, text: str) -> int:
        used = 0
        if self.name is None:
            brace = self._brace(text, LONGEST_NAME - len(self._before))
            used = min(len(text), LONGEST_NAME - len(self._before)) if brace < 0 else brace
            self._before += text[:used]
            if brace < 0:
                self.broken = len(self._before) >= LONGEST_NAME
                return used
            found = self._head.fullmatch(self._before)
            if found is None:
                self.broken = True
                return used
            self.name, self.arguments = found[1].strip(), ""
        read = self._object.push(text[used:])
        self.arguments = (self.arguments or "") + text[used : used + read]
        self.done = self._object.done
        return used + read

    def _brace(self, text: str, end: int) -> int:
        """Where the object begins, -1 when that is further on."""
        at = -1
        for _ in range(self._braces - self._before.count("{")):
            at = text.find("{", at + 1, end)
            if at < 0:
                break
        return at


class ParameterReader:
    """A name and one marked text per parameter, as in XML: `<function=f><parameter=a>1</parameter></function>`.

    head: begins the call, group 1 is the name. opening: begins a parameter, group 1 is its key. closing, end: marks
    behind a value (`{key}` in it is the key) and behind the call. A value of a parameter that is no string is JSON; one
    newline on either side of a string is layout.
    """

    def __init__(self, types: Types, head: re.Pattern[str], opening: re.Pattern[str], closing: str, end: str) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._types, self._head, self._opening, self._closing, self._end = types, head, opening, closing, end
        self._buffer = ""
        self._key: str | None = None
        self._searched = 0  # characters of the buffer in which no closing mark begins

    def push(self, text: str) -> int:
        self._buffer += text
        while self._advance():
            pass
        return len(text) - len(self._buffer) if self.done or self.broken else len(text)

    def _advance(self) -> bool:
        """Take one piece off the buffer; False when more text is needed."""
        if self._key is not None:
            return self._value(self._key)
        rest = self._buffer.lstrip()
        if self.name is None:
            return self._take(self._head, rest, self._begin)
        if rest.startswith(self._end):
            self.arguments = (self.arguments or "{") + "}"
            self._buffer, self.done = rest[len(self._end) :], True
            return False
        if self._end.startswith(rest):
            return False
        return self._take(self._opening, rest, self._open)

    def _take(self, pattern: re.Pattern[str], rest: str, then: Callable[[str], None]) -> bool:
        found = pattern.match(rest)
        if found is not None:
            self._buffer = rest[found.end() :]
            then(found[1].strip())
            return True
        if len(rest) > LONGEST_NAME:
            self._buffer, self.broken = rest[LONGEST_NAME:], True
        return False

    def _begin(self, name: str) -> None:
        self.name, self.arguments = name, ""

    def _open(self, key: str) -> None:
        self._key, self._searched = key, 0

    def _value(self, key: str) -> bool:
        closing = self._closing.replace("{key}", key)
        at = self._buffer.find(closing, self._searched)
        if at < 0:
            self._searched = max(0, len(self._buffer) - len(closing) + 1)
            return False
        value = json.dumps(self._typed(key, self._buffer[:at]), ensure_ascii=False)
        before = ", " if self.arguments else "{"
        self.arguments = f"{self.arguments}{before}{json.dumps(key, ensure_ascii=False)}: {value}"
        self._buffer, self._key = self._buffer[at + len(closing) :], None
        return True

    def _typed(self, key: str, text: str) -> Any:
        types = allowed_types(self._types(self.name or "", key))
        if types and not ("string" in types and not ("null" in types and text.strip() == "null")):
            try:
                return json.loads(text.strip())
            except (ValueError, RecursionError):
                pass
        text = text.removeprefix("\n")
        return text.removesuffix("\n")


class PythonReader:
    """A call as Python writes it: `f(a='x', b=[1, None])`, with literals only."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._text: list[str] = []
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def push(self, text: str) -> int:
        for at, c in enumerate(text):
            self._text.append(c)
            if self._quote:
                self._quote = self._quote if self._escaped or c != self._quote else ""
                self._escaped = c == "\\" and not self._escaped
            elif self._depth == 0 and c != "(":
                name = "".join(self._text).strip()
                self.broken = bool(name) and re.fullmatch(r"[A-Za-z_][\w.]*", name) is None
            else:
                self._depth += (c in "([{") - (c in ")]}")
                self._quote = c if c in "'\"" else ""
                if self._depth == 0:
                    self._end()
            self.broken = self.broken or len(self._text) > LONGEST_EXPRESSION
            if self.done or self.broken:
                return at + 1
        return len(text)

    def _end(self) -> None:
        try:
            call = ast.parse("".join(self._text).strip(), mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError("positional arguments have no names")
            given = {word.arg: _literal(word.value) for word in call.keywords if word.arg is not None}
            self.arguments = json.dumps(given, ensure_ascii=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            self.broken = True
            return
        self.name = ast.unparse(call.func)
        self.done = True


class GemmaReader:
    """`<|tool_call>call:f{a:<|"|>x<|"|>,b:[1,{c:true}]}`: JSON whose keys and strings are quoted otherwise.

    Strings and keys that are written as in JSON are taken too.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: str | None = None
        self.done = self.broken = False
        self._text = ""
        self._at = 0  # characters of the text that are read
        self._depth = 0
        self._written: list[str] = []

    def push(self, text: str) -> int:
        before = len(self._text)
        self._text += text
        while not (self.done or self.broken) and self._advance():
            pass
        self.broken = self.broken or len(self._text) > LONGEST_EXPRESSION
        return max(0, self._at - before) if self.done else len(text)

    def _advance(self) -> bool:
        """Read one piece; False when it has not come whole."""
        if self.name is None:
            return self._begin()
        found = _GEMMA_PIECE.match(self._text, self._at)
        if found is None or (found.end() == len(self._text) and not found["mark"]):
            self.broken = found is None and _GEMMA_PENDING.match(self._text, self._at) is None
            return False
        self._at = found.end()
        if found["mark"]:
            self._depth += (found[0] in "{[") - (found[0] in "}]")
        raw = found["raw"]
        piece = found[0] if raw is None else json.dumps(raw, ensure_ascii=False)
        self._written.append(json.dumps(found["key"], ensure_ascii=False) if found["key"] else piece)
        if self._depth == 0:
            self._end()
        return True

    def _begin(self) -> bool:
        found = _GEMMA_HEAD.match(self._text)
        if found is None:
            self.broken = len(self._text) > LONGEST_NAME
            return False
        self.name, self._at = found[1].strip(), found.end() - 1
        return True

    def _end(self) -> None:
        text = "".join(self._written)
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            self.broken, self.name = True, None
            return
        self.arguments, self.done = text, True


_GEMMA_HEAD = re.compile(r"(?:<\|tool_call>)?\s*call:([^{}<>]{1,256})\{")
_GEMMA_PIECE = re.compile(
    r"""
      <\|"\|> (?P<raw>(?s:.*?)) <\|"\|>
    | "(?:[^"\\]|\\.)*"
    | (?P<mark>[{}\[\],:])
    | (?P<key>[^\s{}\[\],:"<]+) (?=\s*:)
    | [^\s{}\[\],:"<]+ (?=\s*[{}\[\],"<])
    | \s+
    """,
    re.VERBOSE,
)
_GEMMA_PENDING = re.compile(r'[^\s{}\[\],:"<]*\s*$|["<]')


def _literal(node: ast.expr) -> Any:
    """The value of a literal; JSON's own words are taken too."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.Dict):
        return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def types_of(tools: Mapping[str, Mapping[str, Any]]) -> Types:
    """Looks up the schema of a parameter: (name of the tool, key) -> schema, {} where there is none."""

    def lookup(name: str, key: str) -> Mapping[str, Any]:
        properties = tools.get(name, {}).get("properties")
        found = properties.get(key) if isinstance(properties, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    return lookup
