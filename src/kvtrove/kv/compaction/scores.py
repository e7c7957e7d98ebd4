"""How much each token of a prompt matters, by the published methods.

Scores are float32: in bf16 most of them tie. Tensors are used by their methods alone, so that this needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

POOL = 5
"""Neighbours whose scores SnapKV averages, so that what is kept are runs of tokens and not single ones."""
TINY = 1e-12
"""Least length of a vector that is normalised, as in torch."""


@dataclass(frozen=True)
class Seen:
    """What one layer shows of a sequence.

    k: [held, heads, k_dim], as attention reads them. probabilities: float32 [heads, shared, w, held], of the last w
    queries of each of the `shared` query heads that a key head serves; None when no queries were asked for.
    """

    k: Tensor
    probabilities: Tensor | None = None


def keydiff(seen: Seen) -> Tensor:
    """Keys that differ most from the average direction of all (KeyDiff, arXiv 2504.15364). Knows no question.

    Minus the cosine between a key and the mean of all normalised keys, per head: float32 [heads, held].
    """
    k = seen.k.float()
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=TINY)
    anchor = k.mean(0)
    anchor = anchor / anchor.norm(dim=-1, keepdim=True).clamp(min=TINY)
    scores: Tensor = -(k * anchor).sum(-1).T
    return scores.contiguous()


def snapkv(seen: Seen) -> Tensor:
    """What the last queries of the prompt attend to (SnapKV, arXiv 2404.14469): their mean attention, averaged over
    `POOL` neighbours and over the query heads of a key head: float32 [heads, held].

    The window's own tokens score 0; compactors keep them whatever the score.
    """
    assert seen.probabilities is not None, "its window is not 0"
    heads, _, w, held = seen.probabilities.shape
    mean, half = seen.probabilities.mean((1, 2)), POOL // 2
    padded = mean.new_zeros(heads, held - w + 2 * half)
    padded[:, half : half + held - w] = mean[:, : held - w]
    scores = mean.new_zeros(heads, held)
    scores[:, : held - w] = padded.unfold(1, POOL, 1).mean(-1)
    return scores


def tova(seen: Seen) -> Tensor:
    """What the last query attends to, the mean over all heads (TOVA, arXiv 2401.06104): one choice for a layer.

    float32 [heads, held], of equal rows.
    """
    assert seen.probabilities is not None, "its window is 1"
    return seen.probabilities[:, :, -1].mean((0, 1)).expand(seen.k.shape[1], -1).contiguous()


SCORES: Mapping[str, tuple[Callable[[Seen], Tensor], int]] = {
    "keydiff": (keydiff, 0),
    "snapkv": (snapkv, 32),
    "tova": (tova, 1),
}
"""Word -> the score, and how many of a prompt's last queries it looks at; 32 are those of SnapKV's authors."""
