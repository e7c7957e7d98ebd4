"""Conversations by the name that their client gives them: what each has said so far, for whoever wants to keep it."""

from __future__ import annotations

from array import array
from collections import OrderedDict

from kvtrove.scheduler.sequence import Request

MOST_TOKENS = 4 << 20
"""Tokens remembered of all sessions, 4 bytes each; the session that was silent longest is forgotten first."""


class Sessions:
    """(tenant's salt, name) -> the tokens of the last prompt and its answer."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[tuple[bytes, str], array[int]] = OrderedDict()
        self._total = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def ended(self, request: Request) -> None:
        """A request of a session has ended: remember its first sequence."""
        if not request.session or not request.sequences:
            return
        key, tokens = (request.salt, request.session), request.sequences[0].tokens
        self._total += len(tokens) - len(self._tokens.pop(key, ()))
        self._tokens[key] = tokens
        while self._total > MOST_TOKENS:
            _, gone = self._tokens.popitem(last=False)
            self._total -= len(gone)

    def find(self, name: str, salt: bytes) -> array[int] | None:
        return self._tokens.get((salt, name))
