"""How many prompt tokens may join a step in which others decode: a budget in time, learned from the steps so far.

A prompt of 2,000 tokens takes a processor more than a second, and whoever decodes beside it waits for all of it. Cut
into chunks of a fixed time it takes hardly longer: beyond some dozens of rows a product is bound by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 64
"""Fewer rows would read the weights more often than they use them."""
FIRST_LISTED = 256
"""With log-probabilities, as long as nobody knows how long they take: as many as are computed at once."""
NEW_SHARE = 0.3
"""Weight of the newest step in the averages."""


@dataclass
class Pace:
    """seconds: what prompts may add to a step with decodes; 0: no limit. most: tokens of a step. size: of a block."""

    seconds: float
    most: int
    size: int
    _decode: float = 0.0  # seconds of a step that only decodes
    _token: float = 0.0  # seconds that a prompt token adds
    _listed: float = 0.0  # seconds that one adds whose log-probabilities are reported

    def learn(self, prompt_tokens: int, decodes: int, seconds: float, listed: int = 0) -> None:
        """A step has computed so many tokens of prompts, `listed` of them with log-probabilities, beside decodes."""
        if not prompt_tokens:
            self._decode = _newer(self._decode, seconds)
            return
        seconds -= self._decode if decodes else 0.0
        if listed >= SMALLEST:
            self._listed = _newer(self._listed, max(0.0, seconds - self._token * (prompt_tokens - listed)) / listed)
        elif prompt_tokens >= SMALLEST and not listed:
            self._token = _newer(self._token, max(0.0, seconds) / prompt_tokens)

    @property
    def weight(self) -> float:
        """How many of `tokens` one counts for whose log-probabilities are reported."""
        if not self.seconds:
            return 1.0
        fitting = self.seconds / self._listed if self._listed else FIRST_LISTED
        return max(1.0, self.tokens / max(1.0, fitting))

    @property
    def rate(self) -> float:
        """Prompt tokens per second; 0 before anything was measured."""
        return 1 / self._token if self._token else 0.0

    @property
    def tokens(self) -> int:
        """Whole blocks, so that chunks begin where blocks do."""
        if not self.seconds or not self._token:
            return self.most
        wanted = int(min(self.most, self.seconds / self._token))
        return max(SMALLEST, wanted // self.size * self.size)


def _newer(average: float, value: float) -> float:
    """The first value, or an average that moves towards it."""
    return average + (NEW_SHARE if average else 1.0) * (value - average)
