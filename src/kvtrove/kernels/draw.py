"""Draws by Gumbel noise: which tokens take part, and which of them can win (cpu/layers/draw.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.kernels import _extension

MOST = 64


def limit(scaled: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """Set the weights of tokens to 0 that are not among the top_k of their row or, of those, not among the fewest that
    hold top_p of their mass. Of equal log-weights the lower id is the better one.

    scaled: log-weights float32 [R, V], the largest of a row 0; weights: their exponentials, changed in place.
    top_k: int64 [R], V for all; top_p: float64 [R]. TypeError for other arrays, or others than contiguous ones on the
    CPU.
    """
    rows, size = weights.shape
    wanted = [(scaled, torch.float32), (weights, torch.float32), (top_k, torch.int64), (top_p, torch.float64)]
    _check(wanted, scaled.shape == weights.shape and top_k.shape == top_p.shape == (rows,))
    _extension().limit(*(array.data_ptr() for array, _ in wanted), rows, size)


def race(weights: Tensor, places: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(candidates int32 [D, MOST] ascending, counts int32 [D]): the tokens that can win each of D draws.

    A count beyond MOST: there are that many, only the first are listed. Weight w of token i finishes after
    -log(1 - u) / w, u from the bits of `kvtrove.runner.random.token_bits`; candidates are all that may finish first.
    weights: float32 [R, V], the largest of a row 1. places: int64 [D], a row each. keys: int32 [D, 4], of the draws.
    TypeError for other arrays, or others than contiguous ones on the CPU.
    """
    draws = len(places)
    wanted = [(weights, torch.float32), (places, torch.int64), (keys, torch.int32)]
    _check(wanted, weights.ndim == 2 and keys.shape == (draws, 4))
    candidates = torch.empty((draws, MOST), dtype=torch.int32)
    counts = torch.empty(draws, dtype=torch.int32)
    addresses = candidates.data_ptr(), counts.data_ptr()
    _extension().race(weights.data_ptr(), weights.shape[1], places.data_ptr(), keys.data_ptr(), draws, MOST, *addresses)
    return candidates, counts


def _check(wanted: list[tuple[Tensor, torch.dtype]], fits: bool) -> None:
    if not fits or any(x.dtype != dtype or not (x.is_cpu and x.is_contiguous()) for x, dtype in wanted):
        found = ", ".join(f"{x.dtype} {list(x.shape)}" for x, _ in wanted)
        raise TypeError(f"arrays are {found}; contiguous {[str(dtype) for _, dtype in wanted]} on the CPU are needed")
