"""Attention over several sets of keys from attention over each (FlashAttention, arXiv 2205.14135, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

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


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Results over all sets. parts: result [..., dim] and logarithm of the sum of exponentials [...].

    Every query must read something in one of them.
    """
    total = reduce(torch.logaddexp, (lse for _, lse in parts))
    return reduce(torch.add, (out * (lse - total).exp()[..., None] for out, lse in parts))
