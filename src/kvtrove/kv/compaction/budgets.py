"""How many tokens each head keeps, where heads that need more get more. Metadata only; see `kv.cells` for the memory.

    equal       | 4 4 | 4 4 | 4 4 |     what two heads keep in each of three layers, in blocks
    pyramid     | 7 7 | 4 4 | 1 1 |     early layers more (PyramidKV)
    adakv       | 6 2 | 3 5 | 4 4 |     in a layer, heads by their scores (Ada-KV)
    everywhere  | 9 2 | 3 1 | 6 3 |     all heads of all layers by their scores (KVzip)

All keep `kept` tokens on average, so how much memory a sequence takes is known before any score is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

STEEPNESS = 20
"""Of the pyramid: the last layer keeps a twentieth of the average beside the window, as in PyramidKV's code."""


class Budgets(Protocol):
    """A frozen dataclass. `id` stands for the rule in derived keys."""

    @property
    def id(self) -> str: ...
    def wanted(self, scores: Sequence[Tensor], kept: int, recent: int) -> list[list[float]]:
        """Tokens of each head of each layer, `kept` on average. scores: [heads, held] of every layer.

        recent: tokens that every head keeps in any case, most often the last ones, among these.
        """
        ...


@dataclass(frozen=True)
class Pyramid:
    """Layers in arithmetic progression, the first the most (PyramidKV, arXiv 2406.02069)."""

    id: str = "pyramid"

    def wanted(self, scores: Sequence[Tensor], kept: int, recent: int) -> list[list[float]]:
        held, average = scores[0].shape[1] - recent, kept - recent
        least = average / STEEPNESS
        most = 2 * average - least
        if most > held:
            least, most = 2 * average - held, float(held)
        step = (most - least) / max(1, len(scores) - 1)
        most = most if len(scores) > 1 else average
        return [[recent + most - i * step] * layer.shape[0] for i, layer in enumerate(scores)]


@dataclass(frozen=True)
class AdaKV:
    """In each layer the best of all heads together, each head at least `safeguard` of its share (arXiv 2407.11550)."""

    safeguard: float = 0.2

    @property
    def id(self) -> str:
        return f"adakv={self.safeguard:g}"

    def wanted(self, scores: Sequence[Tensor], kept: int, recent: int) -> list[list[float]]:
        found = []
        for layer in scores:
            found.append(_best(_safe(layer, int(self.safeguard * kept)), kept * layer.shape[0]))
        return found


@dataclass(frozen=True)
class Everywhere:
    """The best of all heads of all layers together (KVzip, arXiv 2505.23416), each head at least `safeguard` of its
    share beside what it keeps in any case: scores that are only predicted rank heads less well than tokens of a head.
    """

    safeguard: float = 0.0

    @property
    def id(self) -> str:
        return f"everywhere={self.safeguard:g}" if self.safeguard else "everywhere"

    def wanted(self, scores: Sequence[Tensor], kept: int, recent: int) -> list[list[float]]:
        heads = [layer.shape[0] for layer in scores]
        everything = scores[0].new_empty((sum(heads), scores[0].shape[1]))
        at = 0
        safe = min(kept, recent + int(self.safeguard * kept)) if self.safeguard else 0
        for layer in scores:
            everything[at : at + layer.shape[0]] = _safe(layer, safe)
            at += layer.shape[0]
        best = _best(everything, kept * len(everything))
        return [[best.pop(0) for _ in range(count)] for count in heads]


def _safe(scores: Tensor, count: int) -> Tensor:
    """The same scores [heads, held], the best `count` of each head above all others; it does not matter which of equal
    ones, since they are only counted.
    """
    return scores.scatter(1, scores.topk(count, sorted=False).indices, float("inf")) if count else scores


def _best(scores: Tensor, count: int) -> list[float]:
    """How many of the best `count` scores [heads, held] each head has."""
    order = scores.flatten().sort(descending=True, stable=True).indices[:count] // scores.shape[1]
    found: list[float] = order.bincount(minlength=scores.shape[0]).tolist()
    return found


def in_blocks(wanted: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole blocks in the proportions of `wanted`: `total` of them, each part between `least` and `most`.

    By largest remainders, so that a part differs by less than a block from its share where the bounds allow it.
    """
    share = total / sum(wanted)
    ideal = [part * share for part in wanted]
    parts = [min(most, max(least, floor(part))) for part in ideal]
    while rest := total - sum(parts):
        step = 1 if rest > 0 else -1
        can = [i for i, part in enumerate(parts) if least <= part + step <= most]
        can.sort(key=lambda i: step * (parts[i] - ideal[i]))
        for i in can[: abs(rest)]:
            parts[i] += step
    return parts
