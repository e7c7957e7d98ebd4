"""How many prompt tokens may join a step in which others decode: a budget in time, learned from the steps so far.

A prompt of 2,000 tokens takes a processor more than a second, and whoever decodes beside it waits for all of it. Cut
into chunks of a fixed time it takes hardly longer: beyond some dozens of rows a product is bound by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 64
"""Fewer rows would read the weights more often than they use them."""
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

    def learn(self, prompt_tokens: int, decodes: int, seconds: float) -> None:
        """A step has computed so many tokens of prompts beside so many decodes."""
        if not prompt_tokens:
            self._decode += (NEW_SHARE if self._decode else 1.0) * (seconds - self._decode)
        elif prompt_tokens >= SMALLEST:
            each = max(0.0, seconds - (self._decode if decodes else 0.0)) / prompt_tokens
            self._token += (NEW_SHARE if self._token else 1.0) * (each - self._token)

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
