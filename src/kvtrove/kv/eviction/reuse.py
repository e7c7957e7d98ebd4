"""How likely is it that a prompt's blocks are used again, and when? Learned online, from the past alone.

After "KVCache Cache in the Wild" (arXiv 2506.02634): requests of one kind come back after like times. Kinds are

    turn      0, 1, ... 5 and more: prompts of the same conversation before this one
    news      many or few: tokens that follow what is known
    gap       how long the conversation paused before this prompt

and what is known of few counts less than what is known of many: a kind's histogram is drawn to that of the kinds with
the same turn and news, that one to those with the same turn, and that one to all.

The value of keeping a block of age `a` is the Gittins index of its kind: the best, over all times t until which it
might be kept, of

    P(used again before t | not before a) / expected time that it lies here until it is used again or t comes

so nothing has to be assumed about how long the cache keeps what it keeps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.block import Use

MAX_KNOWN = 1 << 18  # keys remembered
MOST_TURNS = 5
NEWS = 1536  # tokens beyond which a prompt brings many new ones
GAPS = (0.0, 15.0, 40.0, 80.0, 200.0)  # seconds
PRIOR = 60.0  # prompts that the histogram of a wider kind counts as
FIRST_GUESS = 0.3  # of all prompts are continued
LEARN_EVERY = 50  # prompts
EDGES = np.array([0.0, *(8 * 1.35 ** np.arange(18))])  # seconds: lower ends of the histogram's places
LAST_EDGE = 3000.0
FIRST_CHANCE = np.full(len(EDGES), FIRST_GUESS / len(EDGES))
AGES = np.concatenate([np.arange(0.0, 60, 3), 60 * 1.12 ** np.arange(30)])  # seconds at which indices are computed

Floats = NDArray[np.float64]
Kind = tuple[int, ...]


class ReuseModel:
    """What became of earlier prompts, and so the value of a block by its kind and age. size: tokens of a block."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size, self._clock = size, clock
        self._known: dict[bytes, Use] = {}  # key -> the last use of its block; the longest unused comes first
        self._ended: dict[Kind, int] = {}  # prompts of each kind, and when they were continued
        self._continued: dict[Kind, Floats] = {}
        self._indices: dict[Kind, Floats] = {(): gittins(FIRST_CHANCE)}
        self._until_learning = 1

    def begin(self, keys: Sequence[bytes], use: Use) -> None:
        """A prompt with these keys has come: say in `use` what it is, and learn from its coming."""
        known = self._num_known(keys)
        earlier = self._known[keys[known - 1]] if known else None
        gap = 0.0
        if earlier is not None and self._continues(earlier, known):
            gap = max(0.0, self._clock() - earlier.ended)
            use.turn = earlier.turn + 1
            times = self._continued.setdefault(earlier.category, np.zeros(len(EDGES)))
            times[bisect_right(EDGES, gap) - 1] += 1
        news = bool(use.turn) and (len(keys) - known) * self._size > NEWS
        use.category = (min(use.turn, MOST_TURNS), int(news), bisect_right(GAPS, gap))
        use.num_blocks = len(keys)
        self._ended[use.category] = self._ended.get(use.category, 0) + 1
        self._until_learning -= 1
        if not self._until_learning:
            self._learn()

    def end(self, keys: Sequence[bytes], use: Use) -> None:
        """The sequence lets go of its blocks."""
        use.ended = self._clock()
        for key in keys:
            self._known.pop(key, None)
            self._known[key] = use
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def values(self, uses: Sequence[Use]) -> Floats:
        """Uses per second that keeping a block of each is worth."""
        now = self._clock()
        places = np.searchsorted(AGES, [now - use.ended for use in uses]).clip(max=len(AGES) - 1)
        return np.array([self._index(use.category)[at] for use, at in zip(uses, places, strict=True)])

    def _index(self, kind: Kind) -> Floats:
        """The value by age of this kind, or of the nearest wider one of which something is known."""
        while kind not in self._indices and kind:
            kind = kind[:-1]
        return self._indices[kind]

    def _num_known(self, keys: Sequence[bytes]) -> int:
        for i, key in enumerate(keys):
            if key not in self._known:
                return i
        return len(keys)

    def _continues(self, earlier: Use, known: int) -> bool:
        """Whether a prompt continues an earlier one, or has no more than instructions in common with it."""
        return known * self._size > GREETING and 2 * known >= earlier.num_blocks and earlier.ended < float("inf")

    def _learn(self) -> None:
        self._until_learning = LEARN_EVERY
        ended: dict[Kind, float] = {}
        continued: dict[Kind, Floats] = {}
        for kind, number in self._ended.items():
            times = self._continued.get(kind, np.zeros(len(EDGES)))
            for depth in range(len(kind) + 1):
                ended[kind[:depth]] = ended.get(kind[:depth], 0) + number
                continued[kind[:depth]] = continued.get(kind[:depth], 0) + times
        for kind in ended:
            chance = FIRST_CHANCE
            for depth in range(len(kind) + 1):
                chance = (continued[kind[:depth]] + PRIOR * chance) / (ended[kind[:depth]] + PRIOR)
            self._indices[kind] = gittins(chance)


GREETING = 512
"""Tokens that everybody's prompt may begin with: sharing no more makes no conversation."""


def gittins(chance: Floats) -> Floats:
    """Value at each of `AGES` of a thing that is used again with `chance` [len(EDGES)] in each span between `EDGES`."""
    used = np.interp(AGES, [*EDGES, LAST_EDGE], np.concatenate([[0.0], np.cumsum(chance)]))
    left = 1.0001 - used
    waited = np.concatenate([[0.0], np.cumsum((left[1:] + left[:-1]) / 2 * np.diff(AGES))])
    gain, time = used[None, :] - used[:, None], waited[None, :] - waited[:, None]
    rates = np.divide(gain, time, out=np.zeros_like(gain), where=time > 0)
    values: Floats = rates.max(axis=1)
    return values
