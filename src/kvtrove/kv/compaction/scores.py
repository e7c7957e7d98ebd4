"""How much each token of a prompt matters, by the published methods. Scores are float32: in bf16 most of them tie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POOL = 5
"""Neighbours whose scores SnapKV averages, so that what is kept are runs of tokens and not single ones."""


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

    Minus the cosine between a key and the mean of all normalised keys, per head.
    """
    k = torch.nn.functional.normalize(seen.k.float(), dim=-1)
    return -torch.nn.functional.cosine_similarity(k, k.mean(0, keepdim=True), dim=-1).T.contiguous()


def snapkv(seen: Seen) -> Tensor:
    """What the last queries of the prompt attend to (SnapKV, arXiv 2404.14469): their mean attention, averaged over
    `POOL` neighbours and over the query heads of a key head.

    The window's own tokens are scored too, but compactors keep them whatever the score.
    """
    assert seen.probabilities is not None, "its window is not 0"
    before = seen.probabilities.shape[-1] - seen.probabilities.shape[-2]
    mean = seen.probabilities[..., :before].mean(2)  # [heads, shared, before]
    pooled = torch.nn.functional.avg_pool1d(mean, POOL, stride=1, padding=POOL // 2)
    return torch.nn.functional.pad(pooled.mean(1), (0, seen.k.shape[0] - before))


def tova(seen: Seen) -> Tensor:
    """What the last query attends to, the mean over all heads (TOVA, arXiv 2401.06104): one choice for a layer."""
    assert seen.probabilities is not None, "its window is 1"
    return seen.probabilities[:, :, -1].mean((0, 1)).expand(seen.k.shape[1], -1).contiguous()
