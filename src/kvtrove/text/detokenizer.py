"""Text of a sequence that is still growing: what was shown once is never taken back."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from kvtrove.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4  # bytes of UTF-8; a token is at least one byte


class IncrementalDetokenizer:
    """Detokenises one output sequence, and cuts it at the first stop string.

        prompt | output tokens ...... | context             | pending
                                        the last tokens       their text ends in the middle of a
                                        whose text is final   character (U+FFFD): none of it is final

    A push decodes context + pending and takes what lies behind the context's text, so a token costs the same however
    long the sequence is (the window of prefix_offset and read_offset in vLLM and in text-generation-inference).

    After `finish`, `text` is what the output adds to `Tokenizer.decode` of the prompt. One case differs, because shown
    text stays: a byte-fallback tokenizer decodes a whole run of byte tokens to U+FFFD as soon as one of them is not
    UTF-8; here the characters that were complete before remain.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        shown: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        """stop: the earliest one found ends the text, of several at one place the longest; `include_stop` leaves it in.

        shown: special tokens that are part of the text whatever `skip_special_tokens` says.
        Stop strings are not looked for in the text of the first `min_tokens` tokens.
        """
        self.tokenizer, self.stop, self.include_stop, self.min_tokens = tokenizer, stop, include_stop, min_tokens
        self.stopped_by: str | None = None
        self._skipped = tokenizer.special_ids - frozenset(shown) if skip_special_tokens else frozenset()
        self._context = self._end_of(prompt_ids)
        self._pending: list[int] = []
        self._decoded = ""  # all final text
        self._num_shown = 0  # of its characters: the others may be the beginning of a stop string
        self._num_tokens = 0

    @property
    def text(self) -> str:
        """All that may be shown: it only grows, and holds neither part of a character nor part of a stop string."""
        return self._decoded[: self._num_shown]

    def push(self, token_ids: Sequence[int]) -> str | None:
        """Append tokens, one by one: how they are grouped makes no difference. Returns the stop string that was found.

        Tokens after a stop string are ignored.
        """
        for token in token_ids:
            if self.stopped_by is None:
                self._num_tokens += 1
                self._append(self._final_text_with(token))
        return self.stopped_by

    def finish(self) -> None:
        """The sequence is over: show what was held back, an unfinished character as U+FFFD."""
        if self.stopped_by is None:
            self._append(self.tokenizer.decode_after(self._context, self._pending))
            self._pending = []
            self._num_shown = len(self._decoded)

    def copy(self) -> IncrementalDetokenizer:
        """An independent detokenizer in the same state, for a fork of the sequence."""
        twin = copy.copy(self)
        twin._context, twin._pending = list(self._context), list(self._pending)
        return twin

    # ---- tokens to final text ----

    def _final_text_with(self, token: int) -> str:
        if token in self._skipped or not self.tokenizer.knows(token):
            return ""
        self._pending.append(token)
        text = self.tokenizer.decode_after(self._context, self._pending)
        if text.endswith(REPLACEMENT):
            return self._settled_part(text) if len(self._pending) > 2 * LONGEST_CHARACTER else ""
        self._context, self._pending = self._pending, []
        return text

    def _settled_part(self, text: str) -> str:
        """Of many pending tokens, which can only be bytes that are no text, those that belong to no character to come.

        The last token may; those before it are final if both parts decoded apart give the same text.
        """
        head, tail = self._pending[:-1], self._pending[-1:]
        settled = self.tokenizer.decode_after(self._context, head)
        if settled + self.tokenizer.decode_after(self.tokenizer.ordinary, tail) != text:
            return ""
        self._context, self._pending = self.tokenizer.ordinary, tail
        return settled

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """The prompt's last token that has text: without it the first output token would lose its leading space."""
        for token in reversed(prompt_ids):
            if token not in self._skipped and self.tokenizer.knows(token):
                whole = not self.tokenizer.decode([token], skip_special_tokens=False).endswith(REPLACEMENT)
                return [token] if whole else self.tokenizer.ordinary
        return []

    # ---- stop strings ----

    def _append(self, text: str) -> None:
        """Take final text, cut it at a stop string, and hold back what may become one.

        What is shown cannot belong to a stop string any more, so only the text behind it is searched.
        """
        self._decoded += text
        if self._num_tokens <= self.min_tokens:
            self._num_shown = len(self._decoded)
            return
        found = [(at, -len(s), s) for s in self.stop if (at := self._decoded.find(s, self._num_shown)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            self._decoded = self._decoded[: at + len(self.stopped_by) if self.include_stop else at]
            self._num_shown = len(self._decoded)
        else:
            self._num_shown = min(map(self._partial, self.stop), default=len(self._decoded))

    def _partial(self, stop: str) -> int:
        """Where the text ends in a beginning of `stop`; the end of the text when it does not."""
        at = max(self._num_shown, len(self._decoded) - len(stop) + 1)
        while (at := self._decoded.find(stop[0], at)) >= 0:
            if stop.startswith(self._decoded[at:]):
                return at
            at += 1
        return len(self._decoded)
