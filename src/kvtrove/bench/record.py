"""What is kept of a request: when it was due, when its tokens came, how it ended. All times in seconds of one clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

OK = "ok"
TIMEOUT = "timeout"  # abandoned: the client's patience ended
UNFINISHED = "unfinished"  # the run was stopped while it was under way

Floats = NDArray[np.float64]


def _none() -> Floats:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Record:
    """One request.

        arrival ── sent ───────── first token ─ ... ─ last token
           |<─ lag ─>|                 |                  |
           |<──────────── TTFT ───────>|<── O - 1 gaps ──>|
           |<──────────────────── E2E ───────────────────>|

    arrival: when it was due. Times count from there, so that a late client makes figures worse, never better.
    times, tokens [C]: when the C chunks of the answer came, and the tokens (at least 1) that each brought.
    turn, num_turns: its place in its conversation, from 0. token_source: how tokens were counted (see stream.py).
    status: OK, TIMEOUT, UNFINISHED, "http 429" or a word for what broke.
    """

    conversation: int
    turn: int
    num_turns: int
    arrival: float
    sent: float
    ended: float
    times: Floats = field(default_factory=_none)
    tokens: Floats = field(default_factory=_none)
    status: str = OK
    error: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    token_source: str = "continuous"
    warmup: bool = False

    @property
    def ok(self) -> bool:
        return self.status == OK

    @cached_property
    def output_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def lag(self) -> float:
        return max(0.0, self.sent - self.arrival)  # sleeping is exact to nanoseconds only

    @property
    def ttft(self) -> float | None:
        return float(self.times[0]) - self.arrival if len(self.times) else None

    @property
    def e2e(self) -> float | None:
        """To the last token: what follows it (usage, end of stream) is no output."""
        return float(self.times[-1]) - self.arrival if len(self.times) else None

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first: (E2E - TTFT) / (O - 1). None when all came at once.

        Tokens that came together with the first have no gap before them and are not counted either.
        """
        return float(self.times[-1] - self.times[0]) / float(self.tokens[1:].sum()) if len(self.times) > 1 else None

    @cached_property
    def gaps(self) -> Floats:
        """[O - 1] seconds before each token that did not come with the first; k tokens after g seconds are k of g/k."""
        return np.repeat(np.diff(self.times) / self.tokens[1:], self.tokens[1:].astype(int))

    @property
    def pause(self) -> float | None:
        """The longest silence after the first token, however many tokens ended it."""
        return float(np.diff(self.times).max()) if len(self.times) > 1 else None
