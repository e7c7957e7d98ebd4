"""The tokens of recent answers, as they were drawn. Encoding an answer's text again may cut it into other tokens, and
from there on the prefix cache, which compares tokens, could reuse nothing.

    prompt of the last turn | its answer | end of turn, the next message      text of this prompt
    ids that are remembered              | encoded now
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from kvtrove.text.detokenizer import REPLACEMENT
from kvtrove.text.tokenizer import Tokenizer

MAX_TOKENS = 2**20  # of all that is remembered: 4 bytes each
ENTRY = 128  # tokens that one more answer counts for: what it takes beside its tokens is as large
_TAIL = 24  # characters by which most of what is remembered is told from a prompt at once
_SEAM = 32  # tokens behind the answer that are decoded to see whether they still say the same


@dataclass(frozen=True, slots=True)
class _Past:
    """A prompt and its answer. num_characters, tail, digest: of their text, which itself is not kept."""

    num_characters: int
    tail: str
    digest: bytes
    token_ids: array[int]
    num_drawn: int


class RecentAnswers:
    """Bounded, by owner: nothing of one is found for another. Methods may be called from any thread.

    What a model sees never changes but in how the same text is cut into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = MAX_TOKENS) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._pasts: OrderedDict[tuple[str, bytes], _Past] = OrderedDict()  # least recently used first
        self._num_tokens = 0
        self._lock = threading.Lock()

    def remember(self, owner: str, prompt: str, prompt_ids: Sequence[int], drawn: Sequence[int]) -> None:
        """An answer has ended. drawn: its tokens, without one that only says that it ends."""
        total = len(prompt_ids) + len(drawn) + ENTRY
        if not drawn or total > self._max_tokens:
            return
        answer = self._tokenizer.decode_after(list(prompt_ids[-_SEAM:]), list(drawn))
        if answer.endswith(REPLACEMENT):
            return  # cut within a character: the text that comes back says less than the tokens
        text = prompt + answer
        past = _Past(len(text), text[-_TAIL:], _digest(text), array("i", [*prompt_ids, *drawn]), len(drawn))
        key = (owner, past.digest)
        with self._lock:
            old = self._pasts.pop(key, None)
            self._num_tokens += total - (len(old.token_ids) + ENTRY if old else 0)
            self._pasts[key] = past
            while self._num_tokens > self._max_tokens:
                _, oldest = self._pasts.popitem(last=False)
                self._num_tokens -= len(oldest.token_ids) + ENTRY

    def clear(self) -> None:
        with self._lock:
            self._pasts.clear()
            self._num_tokens = 0

    def encode(self, owner: str, text: str) -> tuple[list[int], int] | None:
        """The ids of a prompt that goes on where a remembered answer ends, and how many of them were drawn in its last
        answer. None when no answer is its beginning, or its rest cannot be encoded apart.
        """
        for past in self._candidates(owner, text):
            if _digest(text[: past.num_characters]) == past.digest:
                rest = text[past.num_characters :]
                ids = self._tokenizer.encode(rest, add_special_tokens=False) if rest else []
                if self._fits(past.token_ids, ids, rest):
                    with self._lock:
                        if (owner, past.digest) in self._pasts:
                            self._pasts.move_to_end((owner, past.digest))
                    return [*past.token_ids, *ids], past.num_drawn
                return None
        return None

    def _candidates(self, owner: str, text: str) -> list[_Past]:
        """Longest first."""
        with self._lock:
            found = [
                past
                for (whose, _), past in self._pasts.items()
                if whose == owner and text.startswith(past.tail, past.num_characters - len(past.tail))
            ]
        return sorted(found, key=lambda past: past.num_characters, reverse=True)

    def _fits(self, before: array[int], after: Sequence[int], text: str) -> bool:
        """Whether the tokens of the rest say the same behind the answer as they do alone: some tokenizers put a space
        before every text that they encode.
        """
        seam = self._tokenizer.decode_after(before[-_SEAM:].tolist(), list(after[:_SEAM]))
        return text.startswith(seam.rstrip(REPLACEMENT)) if len(after) > _SEAM else text == seam


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
