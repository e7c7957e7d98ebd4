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


def finch(seen: Seen) -> Tensor:
    """What a question at the end of the prompt attends to, each of its tokens by what it could have attended to (FINCH,
    arXiv 2408.00167): attention times the number of keys that a query sees, the mean over queries and query heads.

    float32 [heads, held], over the whole prompt at once, where the paper cuts it into chunks. Kept keys are turned
    to positions 0, 1, 2, ...: what is left is a shorter dense cache.
    """
    assert seen.probabilities is not None, "its window is not 0"
    w, held = seen.probabilities.shape[-2:]
    visible = seen.probabilities.new_ones(w).cumsum(0) + (held - w)
    scores: Tensor = (seen.probabilities * visible[:, None]).mean((1, 2))
    return scores


def tova(seen: Seen) -> Tensor:
    """What the last query attends to, the mean over all heads (TOVA, arXiv 2401.06104): one choice for a layer.

    float32 [heads, held], of equal rows.
    """
    assert seen.probabilities is not None, "its window is 1"
    return seen.probabilities[:, :, -1].mean((0, 1)).expand(seen.k.shape[1], -1).contiguous()


@dataclass(frozen=True)
class Method:
    """score: float32 [heads, held]. window: last queries of a prompt that it reads. recent: last tokens that stay.
    contiguous: those that stay move together.
    """

    score: Callable[[Seen], Tensor]
    window: int
    recent: int
    contiguous: bool = False


SCORES: Mapping[str, Method] = {
    "keydiff": Method(keydiff, 0, 32),  # a question that is dropped cannot be answered
    "snapkv": Method(snapkv, 32, 32),  # the window of SnapKV's authors
    "finch": Method(finch, 32, 32, contiguous=True),
    "tova": Method(tova, 1, 1),
}
