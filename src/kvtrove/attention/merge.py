"""Attention over two sets of keys from attention over each of them (FlashAttention, arXiv 2205.14135, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_mix(scores: Tensor, v: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """softmax(scores) . v, and the logarithm of the sum of exponentials.

    scores: [..., c, L], -inf where a query does not read. v: [..., L, dim]. Queries that read nothing get 0 and -inf.
    sinks: [..., c], a further score of value zero.
    """
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks)
    weights = (scores - lse.masked_fill(lse.isinf(), 0.0)[..., None]).exp()
    return weights @ v, lse


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Results over both sets. a, b: result [..., dim] and logarithm of the sum of exponentials [...]."""
    total = torch.logaddexp(a[1], b[1])
    parts = (out * (lse - total).exp()[..., None] for out, lse in (a, b))
    return next(parts) + next(parts)
