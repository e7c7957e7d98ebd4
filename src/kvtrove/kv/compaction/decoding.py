"""Compactors that go on while an answer is drawn: what a sequence holds beside its beginning stays the same.

h2o=0.2             | prompt: 1,000 | -> 200, then 264 -> 200 again after every 64 tokens
triattention=2048   | prompt stays  | 2,048 drawn tokens, then 2,112 -> 2,048 after every 64
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from kvtrove.kv.compaction.compactor import NEVER, Usual, made_by
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.calibration import Calibration

if TYPE_CHECKING:
    from torch import Tensor

EVERY = 64
"""Tokens that are drawn between two compactions: one of so many is computed beside a move of what stays."""


@dataclass(frozen=True)
class WhileDecoding(Usual):
    """Keeps the best `budget` tokens of every head, again and again.

    method, budget, score, window, calibration: as of `AfterPrompt`. recent: share of what is kept that goes to the last
    tokens. keeps_prompt: all of the prompt stays, and the budget is of what is drawn. remembers: scores of what stays
    are added to those of the next time.
    """

    method: str
    budget: float | int
    score: Callable[[Seen], Tensor] = field(compare=False, repr=False)
    window: int = 0
    recent: float = 0.0
    keeps_prompt: bool = False
    remembers: bool = False
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.method}={self.budget}{made_by(self.calibration)}/1"

    def due(self, num_prompt: int, dropped: int) -> int:
        if self.keeps_prompt:
            return dropped + num_prompt + int(self.budget) + EVERY
        least = self.kept(num_prompt)
        if isinstance(self.budget, float) and least == num_prompt:
            return NEVER
        if not dropped and least < num_prompt:
            return num_prompt
        return dropped + (least if isinstance(self.budget, float) else self.budget) + EVERY

    def kept(self, held: int, dropped: int = 0) -> int:
        if dropped or self.keeps_prompt:
            return held - EVERY
        return min(held, max(1, ceil(self.budget * held)) if isinstance(self.budget, float) else self.budget)

    def most(self, num_tokens: int) -> int:
        return num_tokens

    def keep(self, seen: Seen) -> Tensor:
        return self.best(self.scores(seen), again=seen.given is not None)

    def scores(self, seen: Seen) -> Tensor:
        """[heads, held], those of earlier times included."""
        found = self.score(seen)
        if self.remembers and seen.given is not None:
            found[:, : seen.given.shape[1]] += seen.given
        return found

    def best(self, scores: Tensor, again: bool) -> Tensor:
        """int64 [heads, kept], ascending. again: some have been dropped before."""
        held = scores.shape[1]
        kept, scores = self.kept(held, int(again)), scores.clone()
        if self.keeps_prompt:
            scores[:, : held - EVERY - int(self.budget)] = float("inf")
        if last := int(self.recent * kept):
            scores[:, -last:] = float("inf")
        return scores.sort(dim=-1, descending=True, stable=True).indices[:, :kept].sort(-1).values

    def problems(self, block_size: int) -> list[str]:
        word, budget = self.method, self.budget
        if isinstance(budget, float):
            return [] if 0 < budget <= 1 else [f"{word}={budget:g} is no share of a prompt: take one up to 1, as 0.2"]
        least = max(block_size, EVERY)
        return [] if budget >= least else [f"{word}={budget} tokens are less than {least}, the least that makes sense"]


def h2o(seen: Seen) -> Tensor:
    """Attention that every token has got so far (H2O, arXiv 2306.14048): the sum over queries and query heads.

    float32 [heads, held], of the queries seen since the last time: the last of the prompt, and all that were drawn.
    """
    scores: Tensor = seen.probabilities.sum((1, 2))
    return scores


def triattention(seen: Seen, calibration: Calibration) -> Tensor:
    """What queries of this model read on average from so far away (TriAttention, arXiv 2604.04921): from keys alone.

    For a query head, the mean query of a calibration text, turned by 1, 2, 4, ... 65,536 positions and the mean taken,
    times the key; and for each rotated pair of elements, how much longer queries are than their mean, times the length
    of the key's pair. Each head's scores are normalised; a token counts with its best among the heads of a key head.
    float32 [heads, held].
    """
    assert seen.turn is not None
    k = seen.k.float()
    held, heads, dim = k.shape
    mean = calibration.tensor(f"q.{seen.layer}.mean", k)  # [num_heads, dim], before the rotation
    longer = calibration.tensor(f"q.{seen.layer}.length", k)  # [num_heads, dim / 2], beyond the length of the mean
    ahead = (2 ** k.new_ones(17).cumsum(0).sub(1)).int()[:, None].expand(-1, len(mean)) + (held - 1 + seen.shift)
    asked = seen.turn(mean.expand(17, *mean.shape), ahead).float().mean(0)
    half = dim // 2
    lengths = (k[..., :half].square() + k[..., half:].square()).sqrt().transpose(0, 1)  # [heads, held, dim / 2]
    keys, shared = k.transpose(0, 1), len(mean) // heads
    found = (asked.view(heads, shared, dim) @ keys.mT) + longer.view(heads, shared, half) @ lengths.mT
    found = (found - found.mean(-1, keepdim=True)) / found.std(-1, keepdim=True).clamp(min=1e-6)
    scores: Tensor = found.amax(1)
    return scores
