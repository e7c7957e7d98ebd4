"""Grammars for outputs: JSON schemas, regular expressions, choices and Lark grammars, by way of llguidance."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from kvtrove.request import RequestError
from kvtrove.server import grammar_worker
from kvtrove.server.helper import Helper, HelperError
from kvtrove.server.json_schema import place_of, prepare

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMPILE_SECONDS = 5.0  # for one grammar
NUM_HELPERS = 2  # a grammar that takes its time holds up one of them
CACHED_GRAMMARS, CACHED_BYTES = 256, 64 * 2**20
_COERCED = "oneOf whose branches may overlap"

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an output must look like. `param`: the request's field that says so. value: a schema (dict), a list of
    choices, or the text of a regex or of a grammar in Lark's or llama.cpp's notation. lenient: keywords of a schema
    that cannot be enforced are left out, and told in `TokenGuide.relaxed`; otherwise they are refused. left_out: those
    that are already.
    """

    kind: Kind
    value: Any
    param: str
    lenient: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.value if isinstance(self.value, str) else json.dumps(self.value))

    def source(self) -> tuple[str, list[str]]:
        """In llguidance's notation, and what was relaxed. RequestError when it cannot be written in it."""
        relaxed = list(self.left_out)
        if self.kind == "json_schema":
            prepared = prepare(self.value, self.param, lenient=self.lenient)
            relaxed += prepared.relaxed
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(prepared.schema))
        elif self.kind == "regex":
            source = llguidance.LLMatcher.grammar_from_regex(self.value)
        elif self.kind == "choice":
            choices = dict.fromkeys(self.value)  # the same choice twice would be two ways to write one text
            source = llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
        else:
            lark = _lark_of(self.value, self.param) if _GBNF.search(self.value) else self.value
            source = llguidance.LLMatcher.grammar_from_lark(lark)
        return str(source), relaxed


def _lark_of(gbnf: str, param: str) -> str:
    """A grammar of llama.cpp (GBNF: `root ::= "a" | "b"`) in Lark's notation. RequestError when it cannot be read."""
    try:
        return any_to_lark(gbnf)
    except Exception as error:  # its reader raises no class of its own where a rule is missing
        raise RequestError(f"{param}: it cannot be read as GBNF ({str(error)[:200] or 'too deep'})", param) from error


class TokenGuide:
    """A `kvtrove.request.Guide`: an llguidance matcher. relaxed: parts of the schema that it does not enforce."""

    def __init__(
        self, matcher: llguidance.LLMatcher, num_words: int, param: str = "grammar", relaxed: tuple[str, ...] = ()
    ) -> None:
        self._matcher, self._num_words, self._param, self.relaxed = matcher, num_words, param, relaxed

    def mask(self) -> NDArray[np.int32]:
        words = np.zeros(self._num_words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return words

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)

    def meets(self, allowed_token_ids: Sequence[int]) -> bool:
        """Whether one of these tokens may come next."""
        mask, ids = self.mask(), np.asarray(allowed_token_ids)
        ids = ids[(ids >= 0) & (ids < 32 * self._num_words)]
        return bool((mask[ids // 32] >> (ids % 32) & 1).any())

    @property
    def problem(self) -> str | None:
        """Why the output is not, or can no more become, a text of the grammar."""
        return f"{self._param}: {explained(self._matcher.get_error())}" if self._matcher.is_error() else None

    def copy(self) -> TokenGuide:
        return TokenGuide(self._matcher.deep_copy(), self._num_words, self._param, self.relaxed)


class Grammars:
    """Compiles grammars for one tokenizer. `vocab_size` is the model's, `eos_token_ids` may end an output.

    A grammar is first compiled and tried in a helper process (`grammar_worker`), then here; what was compiled is kept.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._source, self._eos = tokenizer, list(eos_token_ids)
        self._vocab_size = max(vocab_size, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0))
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Compiled] = OrderedDict()
        self._helpers = [Helper("kvtrove.server.grammar_worker", self._setup) for _ in range(NUM_HELPERS)]
        self._idle = list(self._helpers)
        self._helper_free = threading.Semaphore(NUM_HELPERS)
        self.pool = ThreadPoolExecutor(NUM_HELPERS, thread_name_prefix="kvtrove-grammar")

    def _setup(self) -> bytes:
        stack = grammar_worker.stack_size()
        facts = {"vocab_size": self._vocab_size, "eos": self._eos, "stack_size": stack}
        return json.dumps(facts | {"tokenizer": self._source.to_str()}).encode()

    def close(self) -> None:
        """End the helpers, whatever they are doing."""
        for helper in self._helpers:
            helper.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(self._source.to_str(), n_vocab=self._vocab_size, eos_token=self._eos or None)

    def compile(self, grammar: Grammar) -> TokenGuide:
        """May take seconds: call it on `pool`. RequestError when the grammar is wrong or too complex."""
        try:
            source, relaxed = grammar.source()
        except ValueError as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{grammar.param}: {explained(error)}", grammar.param) from error
        compiled = self._compiled(source)
        if grammar.lenient and grammar.kind == "json_schema" and compiled.problem.startswith("oneOf constraints"):
            style = {**(grammar.value.get("x-guidance") or {}), "coerce_one_of": True}
            source, _ = replace(grammar, value={**grammar.value, "x-guidance": style}).source()
            compiled, relaxed = self._compiled(source), [*relaxed, _COERCED]
        if compiled.matcher is None:
            text = explained(compiled.problem)
            if grammar.kind == "json_schema":
                text += place_of(compiled.problem, grammar.value)
            raise RequestError(f"{grammar.param}: {text}", grammar.param)
        with self._lock:
            matcher = compiled.matcher.deep_copy()
        return TokenGuide(matcher, -(-self._vocab_size // 32), grammar.param, tuple(relaxed))

    def _compiled(self, source: str) -> _Compiled:
        with self._lock:
            known = self._known.get(source)
            if known is not None:
                self._known.move_to_end(source)
                return known
        try:
            problem, memory = self._tried(source)
        except HelperError as failure:
            if failure.timed_out:
                return _Compiled(None, f"it is too complex: it does not compile within {COMPILE_SECONDS:g} s", 0)
            if failure.signal == "SIGKILL":
                return _Compiled(None, "its compiler was ended from outside, for want of memory perhaps; try again", 0)
            problem, memory = "it is too large or too deeply nested: its compiler ran out of memory or stack", 0
        matcher = None
        if not problem:
            with self._lock:
                tokenizer = self._tokenizer
            matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=grammar_worker.limits())
            problem = str(matcher.get_error())
        compiled = _Compiled(None if problem else matcher, problem, memory + len(source))
        with self._lock:
            self._known[source] = compiled
            while len(self._known) > CACHED_GRAMMARS or sum(c.memory for c in self._known.values()) > CACHED_BYTES:
                self._known.popitem(last=False)
        return compiled

    def _tried(self, source: str) -> tuple[str, int]:
        """(what is wrong with a grammar, bytes that it took), from a helper. HelperError when it ended the helper."""
        with self._helper_free:
            with self._lock:
                helper = self._idle.pop()
            try:
                answer = json.loads(helper.call(source.encode(), COMPILE_SECONDS))
                return answer["problem"], max(0, answer["memory"])
            finally:
                with self._lock:
                    self._idle.append(helper)


@dataclass(frozen=True)
class _Compiled:
    """A grammar in its first state, or what is wrong with it. memory: bytes."""

    matcher: llguidance.LLMatcher | None
    problem: str
    memory: int


def explained(error: object) -> str:
    """The words of llguidance in one line, without places in grammars that the caller did not write."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = lines[0] if lines else "it is not valid"
    fault = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    if text.endswith("regex parse error:") and fault:
        text = f"the regular expression {lines[1]!r} cannot be read: {fault}"
    if "oo many items" in text or "too many expressions" in text or "too many states" in text.lower():
        text = f"it is too complex, or never ends ({text})"
    if text.startswith("Resource ") and "registry" in text:
        text = f"$ref: {text.split()[1]} lies outside of the schema; only references within it are followed"
    if text.startswith("oneOf constraints"):
        text = "oneOf: more than one of its branches may hold, which cannot be excluded"
    return text[:400]
