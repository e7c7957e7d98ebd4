"""How likely tokens are under the model itself: before penalties, temperature and filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kvtrove.request import EngineError, Logprob, RequestError, TokenLogprobs
from kvtrove.runner.ranking import EXCLUDED, WIDTHS, rankings

FEW = 32
"""Tokens that are looked at first: enough for the 20 that the OpenAI API gives, and a quarter of the work of 128."""
LARGEST = 1e30  # stands for +inf: float32 can still divide it by any temperature or penalty in use

TokenText = Callable[[int], str]
Ranking = tuple[list[int], list[float]]  # token ids and their log-probabilities, likeliest first


def usable(logits: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """(logits, log of the sum of their exponentials [R], broken rows) of float32 logits [R, V].

    A row is broken by NaN, by +inf, and when all of it is -inf. It comes back harmless, so that what is computed for
    all rows at once goes on: NaN as -inf, +inf as 1e30, nothing at all as uniform. The input is not modified.
    """
    total = logits.logsumexp(-1)
    broken = ~total.isfinite()  # NaN and +inf show in the sum, and so does a row of nothing but -inf
    if not bool(broken.any()):
        return logits, total, []
    rows = logits[broken].nan_to_num(nan=EXCLUDED, posinf=LARGEST, neginf=EXCLUDED)
    rows[rows.amax(-1) == EXCLUDED] = 0.0
    logits, total = logits.clone(), total.clone()
    logits[broken], total[broken] = rows, rows.logsumexp(-1)
    return logits, total, broken.nonzero().squeeze(1).tolist()


def undrawable(logits: Tensor) -> RequestError | EngineError:
    """Why the sampler found no token in a row of logits [V]: they are broken, or else the request excludes them all."""
    logits = logits.float()
    if bool(logits.logsumexp(-1).isfinite()):
        return RequestError(
            "the rules of this request leave no token to go on with: allowed_token_ids, its grammar, and end tokens "
            "that min_tokens holds back exclude each other"
        )
    wrong = int((~logits.isfinite()).sum())
    return EngineError(
        f"the model's logits are not finite ({wrong} of {len(logits)} are NaN or infinite); if loaded in float16 "
        "it overflowed: try --dtype bfloat16 or float32. Otherwise the checkpoint may be damaged"
    )


def logprob_table(
    logits: Tensor, targets: Sequence[int], top_k: int, token_text: TokenText | None = None
) -> list[TokenLogprobs]:
    """One entry per row of logits [N, V]: targets[i] first, then the `top_k` likeliest tokens of row i, best first.

    EngineError when a row is broken.
    """
    usable_logits, total, broken = usable(logits.float())
    if broken:
        raise undrawable(logits[broken[0]])
    per_row = tables_of(usable_logits, total, [(t,) for t in targets], [top_k] * len(targets), token_text)
    return [table for [table] in per_row]


def tables_of(
    logits: Tensor,
    total: Tensor,
    targets: Sequence[Sequence[int]],
    top_k: Sequence[int],
    token_text: TokenText | None = None,
) -> list[list[TokenLogprobs]]:
    """As `logprob_table` with several targets and an own top_k per row: [row][target].

    logits, total: what `usable` gave.
    Ranks are exact: 1 + the number of tokens that are likelier, or as likely with a lower id.
    """
    best = _best(logits, total, top_k)
    flat = [(row, token) for row, tokens in enumerate(targets) for token in tokens]
    tables: list[list[TokenLogprobs]] = [[] for _ in targets]
    for (row, token), (logprob, rank) in zip(flat, _own(logits, total, flat, best), strict=True):
        table = {token: Logprob(logprob, rank, token_text and token_text(token))}
        ids, logprobs = best[row]
        for place in range(min(top_k[row], len(ids))):
            other = ids[place]
            if other != token:
                table[other] = Logprob(logprobs[place], place + 1, token_text and token_text(other))
        tables[row].append(table)
    return tables


def _best(logits: Tensor, total: Tensor, top_k: Sequence[int]) -> list[Ranking]:
    """Per row at least its top_k tokens."""
    need = torch.tensor(top_k, device=logits.device)
    best: list[Ranking] = [([], [])] * len(top_k)
    widths = WIDTHS if max(top_k, default=0) >= FEW else (FEW, *WIDTHS)

    def enough(rows: Tensor, values: Tensor) -> Tensor:
        return (values > EXCLUDED).sum(-1) >= need[rows]

    for rows, values, ids in rankings(logits, enough, widths):
        known = (values > EXCLUDED).sum(-1).tolist()
        logprobs = (values - total[rows].unsqueeze(1)).tolist()
        for row, count, row_ids, row_logprobs in zip(rows.tolist(), known, ids.tolist(), logprobs, strict=True):
            best[row] = row_ids[:count], row_logprobs[:count]
    return best


def _own(logits: Tensor, total: Tensor, flat: list[tuple[int, int]], best: list[Ranking]) -> list[tuple[float, int]]:
    """(log-probability, rank) of each (row, token); only tokens that `best` lacks cost a pass over their row."""
    if not flat:
        return []
    rows, tokens = torch.tensor(flat, device=logits.device).unbind(1)
    values = logits[rows, tokens]
    ranks = [best[row][0].index(token) + 1 if token in best[row][0] else 0 for row, token in flat]
    for n, (row, token) in enumerate(flat):
        if not ranks[n]:
            ranks[n] = _rank(logits[row].cpu().numpy(), token)
    return list(zip((values - total[rows]).tolist(), ranks, strict=True))


def _rank(row: np.ndarray, token: int) -> int:
    """Of a token among all [V]. numpy counts truth values five times as fast as torch."""
    value = row[token]
    return 1 + int(np.count_nonzero(row > value) + np.count_nonzero(row[:token] == value))
