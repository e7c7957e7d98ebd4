"""Which tokens come next. Every row of a batch is drawn as if it were alone.

raw logits -> allowed, biased, banned -> penalties -> temperature -> min_p -> top_k -> top_p -> draw      (vLLM's order)
    |
    +-> log-probabilities and ranks that are reported; candidates of beams
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvtrove.runner.adjust import adjusted, adjusts, ban
from kvtrove.runner.logprobs import TokenText, logprob_table, tables_of, usable
from kvtrove.runner.random import uniform
from kvtrove.runner.ranking import EXCLUDED, rankings, take
from kvtrove.scheduler.output import SampledToken, SampleSpec

__all__ = ["Sampler", "logprob_table"]

BLOCK = 256  # tokens whose weights are summed at once when all of a vocabulary may be drawn


class Sampler:
    """Draws tokens from rows of logits over `vocab_size` tokens. Holds no state between calls."""

    def __init__(self, vocab_size: int, device: str) -> None:
        self.vocab_size, self.device = vocab_size, device

    def sample(
        self, logits: Tensor, specs: Sequence[SampleSpec], token_text: TokenText | None = None
    ) -> list[list[SampledToken]]:
        """logits [R, V], one row per spec: a token per stream of the spec, or its candidates, best first.

        token_text: spells a token for `Logprob.decoded_token`. A row from which nothing can be drawn is empty and
        leaves the others alone; `undrawable` says why. ValueError when the shape does not fit.
        """
        if logits.shape != (len(specs), self.vocab_size):
            raise ValueError(f"logits are {list(logits.shape)}, expected [{len(specs)}, {self.vocab_size}]")
        logits, total, broken = usable(logits.float())
        chosen = choose(logits, specs)
        for row in broken:
            chosen[row] = []
        return report(logits, total, chosen, specs, token_text)


def choose(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """Token ids per row. logits [R, V] hold no NaN and no +inf, and a finite value in every row."""
    beams: list[int] = []
    plain: list[int] = []
    other: list[int] = []
    for row, spec in enumerate(specs):
        kind = beams if spec.candidates else plain if spec.params.greedy and not adjusts(spec) else other
        kind.append(row)
    chosen: list[list[int]] = [[]] * len(specs)
    for rows, pick in ((plain, pick_greedy), (beams, pick_candidates), (other, pick_adjusted)):
        if rows:
            for row, tokens in zip(rows, pick(take(logits, rows), [specs[row] for row in rows]), strict=True):
                chosen[row] = tokens
    return chosen


def pick_greedy(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """The likeliest token, the lowest id of several, for every stream."""
    return [[token] * len(s.streams) for token, s in zip(logits.argmax(-1).tolist(), specs, strict=True)]


def pick_candidates(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """The `candidates` likeliest tokens that are not banned, best first; fewer when there are not so many."""
    work = logits.clone()
    ban(work, specs)
    wanted = torch.tensor([s.candidates for s in specs], device=work.device)
    picked: list[list[int]] = [[]] * len(specs)
    for rows, values, ids in rankings(work, lambda rows, values: (values > EXCLUDED).sum(-1) >= wanted[rows]):
        counts = (values > EXCLUDED).sum(-1).minimum(wanted[rows]).tolist()
        for row, count, tokens in zip(rows.tolist(), counts, ids.tolist(), strict=True):
            picked[row] = tokens[:count]
    return picked


def pick_adjusted(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """Greedy or drawn tokens of rows that are not a plain argmax; none where the request's rules leave no token."""
    lost: list[int] = []
    if any(adjusts(s) for s in specs):
        logits, lost = adjusted(logits, specs)
    drawn = [row for row, s in enumerate(specs) if not s.params.greedy]
    picked = pick_greedy(logits, specs) if len(drawn) < len(specs) else [[]] * len(specs)
    if drawn:
        for row, tokens in zip(drawn, draw(take(logits, drawn), [specs[row] for row in drawn]), strict=True):
            picked[row] = tokens
    for row in lost:
        picked[row] = []
    return picked


def draw(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """A token per stream of every row: the uniform number of (seed, stream, position) put through the inverse CDF."""
    scaled = logits - logits.amax(-1, keepdim=True)  # first: a quotient could overflow where a difference cannot
    scaled /= _column([s.params.temperature for s in specs], logits)
    if any(s.params.min_p for s in specs):
        floor = _column([math.log(s.params.min_p) if s.params.min_p else EXCLUDED for s in specs], logits)
        scaled.masked_fill_(scaled < floor, EXCLUDED)
    numbers = _numbers(specs).to(logits.device)
    tokens = torch.empty(numbers.shape, dtype=torch.int64, device=logits.device)
    limited = [row for row, s in enumerate(specs) if 0 < s.params.top_k < logits.shape[1] or s.params.top_p < 1]
    free = sorted(set(range(len(specs))).difference(limited))
    if free:
        tokens[free] = draw_from_all(take(scaled, free).exp(), numbers[free])
    if limited:
        tokens[limited] = draw_from_best(take(scaled, limited), [specs[row] for row in limited], numbers[limited])
    return [row[: len(s.streams)] for row, s in zip(tokens.tolist(), specs, strict=True)]


def draw_from_all(weights: Tensor, numbers: Tensor) -> Tensor:
    """Token ids [R, S] by weights float32 [R, V] and numbers [R, S]: first a block of tokens, then a token in it."""
    size = weights.shape[1]
    whole = size - size % BLOCK
    blocks, tail = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1), weights[:, whole:].sum(-1, keepdim=True)
    block, rest = invert(torch.cat([blocks, tail], dim=1).double(), numbers)
    tokens = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=weights.device)  # [R, S, BLOCK]
    inside = weights.gather(1, tokens.clamp(max=size - 1).flatten(1)).view_as(tokens).double()
    index, _ = invert(inside.masked_fill(tokens >= size, 0.0).flatten(0, 1), rest.reshape(-1, 1))
    return block * BLOCK + index.view_as(block)


def draw_from_best(scaled: Tensor, specs: Sequence[SampleSpec], numbers: Tensor) -> Tensor:
    """Token ids [R, S] among the top_k and, of those, the fewest that hold top_p of the mass (arXiv 1904.09751).

    scaled: [R, V], the largest of each row is 0, excluded tokens are -inf.
    """
    size = scaled.shape[1]
    top_k = _column([s.params.top_k if 0 < s.params.top_k < size else size for s in specs], scaled, torch.int64)
    top_p = _column([s.params.top_p for s in specs], scaled, torch.float64)
    by_mass = (top_k == size).any()
    mass = scaled.exp().sum(-1, keepdim=True).double() if bool(by_mass) else top_p

    def enough(rows: Tensor, values: Tensor) -> Tensor:
        known = (values > EXCLUDED).sum(-1) >= top_k[rows, 0]
        covered = values.double().exp().sum(-1) >= (top_p * mass)[rows, 0]
        return known | (covered & (top_k[rows, 0] == size))

    tokens = torch.empty(numbers.shape, dtype=torch.int64, device=scaled.device)
    for rows, values, ids in rankings(scaled, enough):
        k = top_k[rows]
        weights = values.double().exp() * (torch.arange(values.shape[1], device=values.device) < k)
        limit = top_p[rows] * torch.where(k == size, mass[rows], weights.sum(-1, keepdim=True))
        kept = weights * (weights.cumsum(-1) - weights < limit)
        index, _ = invert(kept, numbers[rows])
        tokens[rows] = ids.gather(1, index)
    return tokens


def invert(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse CDF: where numbers [R, S] in [0, 1) fall among weights float64 [R, N] >= 0, and how far into that weight.

    Returns (index [R, S], rest [R, S] in [0, 1)). An index of weight zero is never returned.
    """
    cdf = weights.cumsum(-1)
    target = numbers * cdf[:, -1:]
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())  # the last positive weight
    index = torch.searchsorted(cdf, target, right=True).minimum(last)
    # A parallel scan may round so that the sum grows over a weight of zero.
    index = torch.where(weights.gather(1, index) > 0, index, weights.argmax(-1, keepdim=True))
    weight = weights.gather(1, index)
    rest = (target - (cdf.gather(1, index) - weight)) / weight
    return index, rest.clamp(0.0, 1 - 2.0**-53)


def report(
    logits: Tensor, total: Tensor, chosen: list[list[int]], specs: Sequence[SampleSpec], token_text: TokenText | None
) -> list[list[SampledToken]]:
    """Attach raw log-probabilities, and the tables that were asked for, to the chosen tokens."""
    flat = [(row, token) for row, row_tokens in enumerate(chosen) for token in row_tokens]
    rows, tokens = torch.tensor(flat, dtype=torch.int64, device=logits.device).view(-1, 2).unbind(1)
    logprobs = iter((logits[rows, tokens] - total[rows]).tolist())
    wanted = [row for row, s in enumerate(specs) if s.params.logprobs is not None]
    tables = {}
    if wanted:
        top_k = [specs[row].params.logprobs or 0 for row in wanted]
        listed = tables_of(logits[wanted], total[wanted], [chosen[row] for row in wanted], top_k, token_text)
        tables = dict(zip(wanted, listed, strict=True))
    return [
        [SampledToken(t, next(logprobs), tables[row][n] if row in tables else None) for n, t in enumerate(row_tokens)]
        for row, row_tokens in enumerate(chosen)
    ]


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device).unsqueeze(1)


def _numbers(specs: Sequence[SampleSpec]) -> Tensor:
    """float64 [R, S]: the uniform numbers of all streams; rows with fewer than S streams are filled up."""
    width = max(len(s.streams) for s in specs)
    streams = [stream for s in specs for stream in (*s.streams, *[0] * (width - len(s.streams)))]
    seeds = [s.seed for s in specs for _ in range(width)]
    positions = [s.position for s in specs for _ in range(width)]
    return torch.from_numpy(uniform(seeds, streams, positions)).view(-1, width)
