"""Why was no more of a prompt reused? One reason of a closed list, from what the cache knows at admission.

Looks at one sequence's own key chain only, so it says nothing about other salts: no tenant learns what others sent.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager
    from kvtrove.kv.prefix_cache import KeyChain

MAX_EVICTED = 32_768  # keys remembered, 16 bytes each


class Reason(StrEnum):
    """What ended the reuse of a prompt. docs/cache-reports.md says what to do about each."""

    FULL = "full"
    """Everything that could be reused was: the rest is new, or shorter than a block."""
    LAST_TOKEN_RECOMPUTED = "last_token_recomputed"
    """All of it is cached, but the last token's output is not: its block is computed again."""
    COLD = "cold"
    """Nothing that begins like this prompt was computed before."""
    DIVERGED = "diverged"
    """From a position on, no earlier prompt goes on like this one."""
    EVICTED = "evicted"
    """The next block was cached, and had to make room or was cleared."""
    WINDOW_LOST = "window_lost"
    """Some layers still hold the next block, others have lost the window that the next token reads."""
    BELOW_BLOCK_GRANULARITY = "below_block_granularity"
    """What is shared is shorter than one block, and only whole blocks are reused."""
    PROMPT_LOGPROBS = "prompt_logprobs"
    """Log-probabilities of the prompt were asked for, so every position had to be computed."""
    DISABLED = "disabled"
    """Prefix caching is off."""
    OTHER_TENANT = "other_tenant"
    """The two requests have different salts. Only a comparison of two given requests says so, never the server."""
    OTHER_MODEL_OR_CACHE_SPEC = "other_model_or_cache_spec"
    """The two requests name different models. Only a comparison of two given requests says so."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Token counts of a prompt. evicted_age: seconds since the first missing block was evicted, for EVICTED."""

    prompt_tokens: int
    reused_tokens: int
    reason: Reason
    evicted_age: float | None = None

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens


class EvictedKeys:
    """When the blocks evicted last were evicted, by key; the oldest entries are overwritten beyond `capacity`.

    A ring of fixed size, written in turn and searched whole (some 10 us, once per prompt): it never grows. Of a key, a
    hash, the first eight bytes stand for it.
    """

    def __init__(self, capacity: int = MAX_EVICTED, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._times = np.zeros(capacity, np.int64), np.full(capacity, -1.0)
        self._written = 0
        self._clock = clock

    def __len__(self) -> int:
        return min(self._written, len(self._keys))

    def add(self, key: bytes) -> None:
        at = self._written % len(self._keys)
        self._keys[at], self._times[at] = _head(key), self._clock()
        self._written += 1

    def age(self, key: bytes) -> float | None:
        """Seconds since `key` was last evicted, None when that is not known."""
        found = self._times[: len(self)][self._keys[: len(self)] == _head(key)]
        return None if found.size == 0 else self._clock() - float(found.max())


def _head(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)


def explain(cache: KVCacheManager, chain: KeyChain, num_tokens: int, num_reused: int, limit: int) -> Explanation:
    """Why `num_reused` of a prompt's `num_tokens` were reused and no more, right after `cache.match` with `limit`.

    O(groups). COLD and DIVERGED stand for "nothing is known of the next block": whoever remembers earlier prompts can
    say more.
    """
    age = None
    index = num_reused // cache.block_size  # of the first block that was not reused
    full_blocks = num_tokens // cache.block_size
    if not cache.enable_prefix_caching:
        reason = Reason.DISABLED
    elif limit < 1 < num_tokens:
        reason = Reason.PROMPT_LOGPROBS
    elif full_blocks == 0:
        reason = Reason.BELOW_BLOCK_GRANULARITY
    elif limit < 1:  # the only token of the prompt is a block by itself, and is computed for its logits
        reason = Reason.LAST_TOKEN_RECOMPUTED
    elif index == full_blocks:
        reason = Reason.FULL
    elif _held(cache, chain, index):
        reason = Reason.LAST_TOKEN_RECOMPUTED if (index + 1) * cache.block_size > limit else Reason.WINDOW_LOST
    elif (age := cache.evicted.age(chain.keys[index])) is not None:
        reason = Reason.EVICTED
    else:
        reason = Reason.DIVERGED if num_reused else Reason.COLD
    return Explanation(num_tokens, num_reused, reason, age)


def _held(cache: KVCacheManager, chain: KeyChain, index: int) -> bool:
    """Whether any group has the block."""
    key, tokens = chain.keys[index], chain.tokens[index]
    return any(cache.index.find(group, key, tokens) is not None for group in range(cache.num_groups))


def peek(cache: KVCacheManager, tokens: array[int], salt: bytes) -> Explanation:
    """What would happen to a prompt that came now. Nothing is taken over, and no statistics change."""
    kv = cache.open(salt)
    try:
        limit = len(tokens) - 1
        match = cache.match(kv, tokens, limit)
        return explain(cache, kv.chain, len(tokens), match.num_tokens, limit)
    finally:
        cache.free(kv)
