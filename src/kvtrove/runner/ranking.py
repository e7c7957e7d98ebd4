"""The best tokens of many rows in one exact order: larger value first, equal values by lower token id.

`torch.topk` breaks ties as it likes, and logits of 16-bit models tie all the time; here the row alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

WIDTHS = (128, 2048)  # tokens looked at before a full sort: nearly every row is settled by the first
AT_ONCE = 1 << 20  # logits of rows that are ranked together: sorting holds many times their bytes
EXCLUDED = float("-inf")

Enough = Callable[[Tensor, Tensor], Tensor]


def rankings(x: Tensor, enough: Enough, widths: Sequence[int] = WIDTHS) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ranks every row of x [R, V] as far as it is needed; excluded tokens have the value -inf.

    Yields (rows [n], values [n, W], ids [n, W]), best first, each row once; slots beyond what is known hold -inf.
    enough: (rows [n], values [n, W]) -> bool [n]; rows that say no are looked at more widely.
    widths: how many tokens are looked at, growing.
    """
    rows = torch.arange(len(x), device=x.device)
    for width in (*widths, x.shape[1]):
        left = []
        for part in rows.split(max(1, AT_ONCE // x.shape[1])):
            values, ids, complete = ranked(take(x, part), width)
            done = complete | enough(part, values)
            if bool(done.all()):
                yield part, values, ids
                continue
            if bool(done.any()):
                yield part[done], values[done], ids[done]
            left.append(part[~done])
        if not left:
            return
        rows = torch.cat(left)


def ranked(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values [R, W], ids [R, W], complete [R]) of the best `width` tokens of x [R, V], in order.

    complete: all tokens that are not excluded are there. Otherwise the last group of equal values may go on beyond the
    border, so it is left out (-inf).
    """
    if width >= x.shape[1]:
        values, ids = torch.sort(x, dim=-1, descending=True, stable=True)  # stable: equal values stay in order of id
        return values, ids, torch.ones(len(x), dtype=torch.bool, device=x.device)
    values, ids = x.topk(width)
    edge = values[:, -1:]
    values = values.masked_fill(values == edge, EXCLUDED)
    tied = ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > EXCLUDED)).any(-1)
    if bool(tied.any()):
        by_id, order = ids[tied].sort(dim=-1)
        values[tied], order = torch.sort(values[tied].gather(-1, order), dim=-1, descending=True, stable=True)
        ids[tied] = by_id.gather(-1, order)
    return values, ids, edge.squeeze(1) == EXCLUDED


def take(x: Tensor, rows: Sequence[int] | Tensor) -> Tensor:
    """Some rows of x, in order: without a copy when they are all."""
    return x if len(rows) == len(x) else x[rows]
