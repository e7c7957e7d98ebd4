"""How likely is it that a prompt's blocks are used again, and when? Learned online, from the past alone.

After "KVCache Cache in the Wild" (arXiv 2506.02634): requests of one kind come back after like times. Kinds are

    turn      0, 1, ... 5 and more: prompts of the same conversation before this one
    news      few, many or a great many: tokens that follow what is known
    gap       how long the conversation paused before this prompt

For each kind and each span of time the chance is counted that a prompt that was not continued before is continued then:
of those that have waited so long, and no others, since what came a minute ago may still be continued (Kaplan and Meier,
1958). What is known of few counts less than what is known of many: a kind's chances are drawn to those of the kinds
with the same turn and news, these to those with the same turn, and these to those of all.

The value of keeping a block of age `a` is the Gittins index of its kind: the best, over all times t until which it
might be kept, of

    P(used again before t | not before a) / expected time that it lies here until it is used again or t comes

so nothing has to be assumed about how long the cache keeps what it keeps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.block import Use

MAX_KNOWN = 1 << 18  # keys remembered
MOST_PAST = 1 << 16  # prompts learned from
MOST_TURNS = 5
NEWS = (1536, 32768)  # tokens from which on a prompt brings many new ones, and a great many
GAPS = (0.0, 15.0, 40.0, 80.0, 200.0)  # seconds
PRIOR = 40.0  # prompts that the chances of a wider kind count as
FIRST_GUESS = 0.3  # of all prompts are continued
LEARN_EVERY = 50  # prompts, or a twentieth of those learned from
EDGES = np.array([0.0, *(8 * 1.35 ** np.arange(18))])  # seconds: lower ends of the spans
LAST_EDGE = 3000.0
WIDTHS = np.diff([*EDGES, LAST_EDGE])
FIRST_CHANCES = np.full(len(EDGES), FIRST_GUESS / len(EDGES))
AGES = np.concatenate([np.arange(0.0, 60, 3), 60 * 1.12 ** np.arange(30)])  # seconds at which indices are computed

Floats = NDArray[np.float64]
Kind = tuple[int, ...]


class ReuseModel:
    """What became of earlier prompts, and so the value of a block by its kind and age. size: tokens of a block."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size, self._clock = size, clock
        self._known: dict[bytes, Use] = {}  # key -> the last use of its block; the longest unused comes first
        self._past: deque[Use] = deque(maxlen=MOST_PAST)  # prompts that have ended
        self._indices: dict[Kind, Floats] = {(): gittins(FIRST_CHANCES)}
        self._until_learning = 1

    def begin(self, keys: Sequence[bytes], use: Use) -> None:
        """A prompt with these keys has come: say in `use` what it is, and learn from its coming."""
        known = self._num_known(keys)
        earlier = self._known[keys[known - 1]] if known else None
        gap = 0.0
        if earlier is not None and self._continues(earlier, known):
            gap = max(0.0, self._clock() - earlier.ended)
            use.turn = earlier.turn + 1
            earlier.resumed_after = min(earlier.resumed_after, gap)
        news = bisect_right(NEWS, (len(keys) - known) * self._size)
        use.category = (min(use.turn, MOST_TURNS), news, bisect_right(GAPS, gap))
        use.num_blocks = len(keys)
        self._until_learning -= 1
        if not self._until_learning:
            self._learn()

    def end(self, keys: Sequence[bytes], use: Use) -> None:
        """The sequence lets go of its blocks."""
        use.ended = self._clock()
        self._past.append(use)
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
        """Chances and indices of all kinds, from the prompts that ended."""
        self._until_learning = max(LEARN_EVERY, len(self._past) // 20)
        kinds = [use.category for use in self._past]
        lived, resumed = _lives(self._past, self._clock())
        chances: dict[Kind, Floats] = {}
        for depth in range(len(kinds[0]) + 1 if kinds else 0):
            numbers = {kind: i for i, kind in enumerate(sorted({kind[:depth] for kind in kinds}))}
            rows = np.array([numbers[kind[:depth]] for kind in kinds])
            waited, continued = np.zeros((2, len(numbers), len(EDGES)))
            np.add.at(waited, rows, lived)
            np.add.at(continued, rows, resumed)
            for kind, i in numbers.items():
                wider = chances[kind[:-1]] if kind else FIRST_CHANCES
                chances[kind] = (continued[i] + PRIOR * wider) / (waited[i] + PRIOR)
        self._indices |= {kind: gittins(chance) for kind, chance in chances.items()}


def _lives(uses: Collection[Use], now: float) -> tuple[Floats, Floats]:
    """[uses, len(EDGES)]: how much of each span a prompt has waited, and 1 for the span in which it was continued."""
    resumed_after = np.array([use.resumed_after for use in uses])
    ages = np.minimum(resumed_after, [now - use.ended for use in uses])
    lived = ((ages[:, None] - EDGES) / WIDTHS).clip(0, 1)
    rows = np.flatnonzero(np.isfinite(resumed_after))
    places = np.searchsorted(EDGES, ages[rows], side="right") - 1
    resumed = np.zeros_like(lived)
    resumed[rows, places] = lived[rows, places] = 1
    return lived, resumed


GREETING = 512
"""Tokens that everybody's prompt may begin with: sharing no more makes no conversation."""


def gittins(chances: Floats) -> Floats:
    """Value at each of `AGES` of what is used again with `chances` [len(EDGES)] in each span, if it was not before."""
    left = np.interp(AGES, [*EDGES, LAST_EDGE], np.concatenate([[1.0], np.cumprod(1 - chances)]))
    used, left = 1 - left, left + 1e-4
    waited = np.concatenate([[0.0], np.cumsum((left[1:] + left[:-1]) / 2 * np.diff(AGES))])
    gain, time = used[None, :] - used[:, None], waited[None, :] - waited[:, None]
    rates = np.divide(gain, time, out=np.zeros_like(gain), where=time > 0)
    values: Floats = rates.max(axis=1)
    return values
