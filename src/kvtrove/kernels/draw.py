"""Which tokens of a vocabulary can win a draw by Gumbel noise, in one pass over their weights (cpu/draw.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.kernels import _extension

MOST = 64


def race(weights: Tensor, places: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(candidates int32 [D, MOST] ascending, counts int32 [D]): the tokens that can win each of D draws.

    A count beyond MOST: there are that many, only the first are listed. Weight w of token i finishes after
    -log(1 - u) / w, u from the bits of `kvtrove.runner.random.token_bits`; candidates are all that may finish first.
    weights: float32 [R, V], the largest of a row 1. places: int64 [D], a row each. keys: int32 [D, 4], of the draws.
    TypeError for other arrays, or others than contiguous ones on the CPU.
    """
    draws = len(places)
    fits = weights.dtype == torch.float32 and places.dtype == torch.int64 and keys.dtype == torch.int32
    plain = all(x.is_cpu and x.is_contiguous() for x in (weights, places, keys))
    if not (fits and plain and weights.ndim == 2 and keys.shape == (draws, 4)):
        raise TypeError(
            f"weights are {weights.dtype} {list(weights.shape)}, places {places.dtype} {list(places.shape)}, keys "
            f"{keys.dtype} {list(keys.shape)}; contiguous float32 [R, V], int64 [D], int32 [D, 4] on the CPU are needed"
        )
    candidates = torch.empty((draws, MOST), dtype=torch.int32)
    counts = torch.empty(draws, dtype=torch.int32)
    addresses = candidates.data_ptr(), counts.data_ptr()
    _extension().race(weights.data_ptr(), weights.shape[1], places.data_ptr(), keys.data_ptr(), draws, MOST, *addresses)
    return candidates, counts
