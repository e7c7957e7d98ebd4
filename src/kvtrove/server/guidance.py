"""Grammars for outputs: JSON schemas, regular expressions, choices and Lark grammars, by way of llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import llguidance
import numpy as np
from numpy.typing import NDArray

from kvtrove.request import RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Compact JSON with json.dumps' separators: a grammar that allows any white space lets a model write nothing else.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an output must look like. `param`: the request's field that says so. value: a schema (dict), a list of
    choices, or the text of a regex or of a Lark grammar.
    """

    kind: Kind
    value: Any
    param: str

    @property
    def size(self) -> int:
        return len(self.value if isinstance(self.value, str) else json.dumps(self.value))

    def source(self) -> str:
        """In llguidance's notation. ValueError when it cannot be written in it."""
        if self.kind == "json_schema":
            styled = {"x-guidance": JSON_STYLE} | self.value
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(styled))
        elif self.kind == "regex":
            source = llguidance.LLMatcher.grammar_from_regex(self.value)
        elif self.kind == "choice":
            source = llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, self.value)))
        else:
            source = llguidance.LLMatcher.grammar_from_lark(self.value)
        return str(source)


class TokenGuide:
    """A `kvtrove.request.Guide`: an llguidance matcher. Where the grammar becomes too complex, the output ends."""

    def __init__(self, matcher: llguidance.LLMatcher, num_words: int) -> None:
        self._matcher, self._num_words = matcher, num_words

    def mask(self) -> NDArray[np.int32]:
        words = np.zeros(self._num_words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return words

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot go on, if so."""
        return _first_line(self._matcher.get_error()) if self._matcher.is_error() else None

    def copy(self) -> TokenGuide:
        return TokenGuide(self._matcher.deep_copy(), self._num_words)


class Grammars:
    """Compiles grammars for one tokenizer. `vocab_size` is the model's, `eos_token_ids` may end an output."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._source, self._eos = tokenizer, list(eos_token_ids)
        self._vocab_size = max(vocab_size, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0))
        self._lock = threading.Lock()

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(self._source.to_str(), n_vocab=self._vocab_size, eos_token=self._eos or None)

    def compile(self, grammar: Grammar) -> TokenGuide:
        """May take a while: call it off the event loop. RequestError when the grammar is wrong or too complex."""
        with self._lock:
            tokenizer = self._tokenizer
        try:
            source = grammar.source()
        except ValueError as error:
            raise RequestError(f"{grammar.param}: {_first_line(error)}", grammar.param) from error
        guide = TokenGuide(llguidance.LLMatcher(tokenizer, source, log_level=0), -(-self._vocab_size // 32))
        guide.mask()  # what is too complex shows here, and not between two steps of the engine
        if problem := guide.problem:
            raise RequestError(f"{grammar.param}: {problem}", grammar.param)
        return guide


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]
