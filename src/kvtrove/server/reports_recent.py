"""What earlier prompts of a tenant looked like, so that a new one can be compared with them. Bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvtrove.server.reports_change import Comparison, Outline

Tokens = NDArray[np.int32]

MAX_PROMPTS = 64  # of a tenant
MAX_TOKENS = 2**20  # of them together, 4 MiB; comparing with all of them takes 4 ms


@dataclass(eq=False, slots=True)
class Remembered:
    """A prompt that the engine accepted. `time`: its arrival, monotonic clock, seconds.

    tokens: int32 [T], the prompt, and once it has ended what was computed of the first output too. complete: it ended
    by itself, so all of `tokens` was in the cache. client: who among the tenant's users sent it, as far as they say.
    answer: names the answer to it. outline: of its conversation, None for a prompt without messages.
    """

    request_id: str
    time: float
    salt: str
    client: str
    tokens: Tokens
    complete: bool = False
    answer: str = ""
    outline: Outline | None = None
    num_prompt: int = field(init=False)  # of the tokens

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    def finish(self, output: Sequence[int]) -> None:
        """The last token drawn is in no cache: nothing was computed after it."""
        self.tokens = np.concatenate((self.tokens, as_tokens(output[:-1])))
        self.complete = True


@dataclass(frozen=True, slots=True)
class Best:
    """The earlier prompt that begins most like a new one: `common` tokens are the same."""

    earlier: Remembered
    common: int


class RecentPrompts:
    """The last prompts of one tenant. Prompts of different salts are never compared."""

    def __init__(self, max_prompts: int = MAX_PROMPTS, max_tokens: int = MAX_TOKENS) -> None:
        self._prompts: deque[Remembered] = deque()
        self._max_prompts, self._max_tokens = max_prompts, max_tokens

    def __len__(self) -> int:
        return len(self._prompts)

    def best(self, tokens: Tokens, salt: str) -> Best | None:
        """The longest common prefix; of equally long ones the latest. None when not even a first token is shared.

        Compares with every prompt: prompts that differ within their first block are the ones worth finding, and no
        index by block would find them.
        """
        found = None
        for earlier in reversed(self._prompts):
            if earlier.salt == salt:
                common = common_prefix(tokens, earlier.tokens)
                if common > (found.common if found else 0):
                    found = Best(earlier, common)
        return found

    def last_of(self, client: str, salt: str) -> Remembered | None:
        """What the same client sent before."""
        return next((p for p in reversed(self._prompts) if (p.client, p.salt) == (client, salt)), None)

    def of(self, request_id: str) -> list[Remembered]:
        """The prompts of one request, in their order; empty when they are forgotten."""
        return [prompt for prompt in self._prompts if prompt.request_id == request_id]

    def compare(self, prompt: Remembered, answer: str) -> Comparison:
        """A prompt beside the one that was answered under this name."""
        same = (p for p in self._prompts if (p.answer, p.salt) == (answer, prompt.salt))
        earlier = next(same, None)
        if earlier is None or earlier.outline is None or prompt.outline is None:
            return Comparison(found=False)
        common = common_prefix(prompt.tokens, earlier.tokens[: earlier.num_prompt])
        missed = min(earlier.num_prompt, len(prompt.tokens)) - common
        return Comparison(True, prompt.outline.change(earlier.outline), common, missed)

    def add(self, prompt: Remembered) -> None:
        """Remember one more; the oldest ones make room."""
        self._prompts.append(prompt)
        size = sum(len(p.tokens) for p in self._prompts)
        while len(self._prompts) > self._max_prompts or (size > self._max_tokens and len(self._prompts) > 1):
            size -= len(self._prompts.popleft().tokens)


def as_tokens(ids: Sequence[int]) -> Tokens:
    return np.array(ids, np.int32)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Tokens until the first that differs; looks at growing pieces, since most pairs differ early."""
    length, start, size = min(len(a), len(b)), 0, 64
    while start < length:
        stop = min(length, start + size)
        differs = a[start:stop] != b[start:stop]
        first = int(differs.argmax())
        if differs[first]:
            return start + first
        start, size = stop, size * 4
    return length
