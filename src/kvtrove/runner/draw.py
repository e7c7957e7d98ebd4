"""Drawing by Gumbel noise: of the tokens that may be drawn, the one with the largest log-weight + noise.

Noise belongs to (seed, stream, position, token) and to nothing else. So a draw changes only where two tokens are level
to within the change of their logits: not with the last bit of some other logit, and not when a filter lets one more
token in that would lose anyway. An inverted sum of weights has neither property.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvtrove.kernels.draw import race
from kvtrove.runner.random import draw_keys, gumbel, token_bits
from kvtrove.runner.ranking import EXCLUDED, rankings, take
from kvtrove.scheduler.output import SampleSpec

AT_ONCE = 1 << 18  # tokens of all draws that are looked at together: what lies between two operations stays in a cache
SLACK = 1 + 1e-4  # far beyond the rounding of float32


class Draws:
    """D draws from R rows, row by row: one per stream of each spec. owner: int64 [D], the row. keys: int32 [D, 4]."""

    def __init__(self, specs: Sequence[SampleSpec], device: torch.device) -> None:
        streams = [stream for s in specs for stream in s.streams]
        counts = [len(s.streams) for s in specs]
        seeds = [s.seed for s in specs for _ in s.streams]
        positions = [s.position for s in specs for _ in s.streams]
        self.owner = torch.repeat_interleave(torch.tensor(counts, device=device))
        self.keys = torch.from_numpy(draw_keys(seeds, streams, positions)).to(device)
        self.tokens = torch.empty(len(streams), dtype=torch.int64, device=device)
        self._counts = counts

    def of(self, rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """(draws of these rows int64 [d], the place of each one's row among them [d])."""
        places = torch.full((num_rows,), -1, device=rows.device)
        places[rows] = torch.arange(len(rows), device=rows.device)
        mine = places[self.owner]
        draws = (mine >= 0).nonzero().squeeze(1)
        return draws, mine[draws]

    def per_row(self) -> list[list[int]]:
        drawn = iter(self.tokens.tolist())
        return [[next(drawn) for _ in range(count)] for count in self._counts]


def draw(scaled: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """A token per stream of every row. scaled: float32 [R, V] log-weights, the largest of a row 0, excluded ones -inf;
    top_k and top_p of the specs are still to be applied.
    """
    draws = Draws(specs, scaled.device)
    limited = [row for row, s in enumerate(specs) if 0 < s.params.top_k < scaled.shape[1] or s.params.top_p < 1]
    free = sorted(set(range(len(specs))).difference(limited))
    if free:
        mine, places = draws.of(torch.tensor(free, device=scaled.device), len(specs))
        draws.tokens[mine] = best_of_all(take(scaled, free), places, draws.keys[mine])
    if limited:
        rows = torch.tensor(limited, device=scaled.device)
        _draw_limited(take(scaled, limited), rows, [specs[row] for row in limited], draws, len(specs))
    return draws.per_row()


def best_of_all(scaled: Tensor, places: Tensor, keys: Tensor) -> Tensor:
    """Token ids int64 [d] of draws from whole rows `places` of scaled [n, V].

    Noise over a whole vocabulary would cost two logarithms a token. Seen as a race, weight w finishes at
    -log(1 - u) / w, which is at least u / w: only tokens whose u / w is below the finish of one runner can win, mostly
    one to three, and only these get their noise.
    """
    weights = scaled.exp()
    if not scaled.is_cpu:
        return _race(scaled, weights, places, keys)
    candidates, counts = race(weights, places, keys)
    most = int(counts.max())
    if most > candidates.shape[1]:  # hardly ever
        return _race(scaled, weights, places, keys)
    listed = torch.arange(most) < counts.unsqueeze(1)
    tokens = candidates[:, :most].long().where(listed, 0)
    values = scaled[places.unsqueeze(1), tokens].masked_fill(~listed, EXCLUDED)
    return _best_of_kept(values, tokens, torch.arange(len(places)), keys)


def _race(scaled: Tensor, weights: Tensor, places: Tensor, keys: Tensor) -> Tensor:
    """The same in torch."""
    ids = torch.arange(scaled.shape[1], dtype=torch.int32, device=scaled.device)
    winners = torch.empty(len(places), dtype=torch.int64, device=scaled.device)
    for part in torch.arange(len(places), device=scaled.device).split(max(1, AT_ONCE // scaled.shape[1])):
        weight, key = weights[places[part]], keys[part]
        early = token_bits(ids, key[:, :1], key[:, 1:2]).float().add_(0.5).mul_(2.0**-31).div_(weight)
        first, leader = early.min(-1, keepdim=True)
        its_weight = weight.gather(1, leader).double()
        bound = -torch.log1p(-first * its_weight) / its_weight
        draw, token = (early <= (SLACK * bound).float()).nonzero().unbind(1)
        score = scaled[places[part][draw], token] + gumbel(token.int(), key[draw])
        winners[part] = _first_best(draw, token, score, len(part)).to(scaled.device)
    return winners


def _first_best(draw: Tensor, token: Tensor, score: Tensor, num_draws: int) -> Tensor:
    """int64 [num_draws]: of each draw the token with the best score, the lowest id of several."""
    draws, tokens, scores = draw.cpu().numpy(), token.cpu().numpy(), score.cpu().numpy()
    order = np.lexsort((tokens, -scores, draws))
    return torch.from_numpy(tokens[order][np.searchsorted(draws[order], np.arange(num_draws))])


def _draw_limited(scaled: Tensor, at: Tensor, specs: Sequence[SampleSpec], draws: Draws, num_rows: int) -> None:
    """Among the top_k and, of those, the fewest that hold top_p of the mass (arXiv 1904.09751). at: rows of `draws`."""
    size = scaled.shape[1]
    top_k = column([s.params.top_k if 0 < s.params.top_k < size else size for s in specs], scaled, torch.int64)
    top_p = column([s.params.top_p for s in specs], scaled, torch.float64)
    by_mass = (top_k == size).any()
    mass = scaled.exp().sum(-1, keepdim=True).double() if bool(by_mass) else top_p

    def enough(rows: Tensor, values: Tensor) -> Tensor:
        known = (values > EXCLUDED).sum(-1) >= top_k[rows, 0]
        covered = values.double().exp().sum(-1) >= (top_p * mass)[rows, 0]
        return known | (covered & (top_k[rows, 0] == size))

    for rows, values, ids in rankings(scaled, enough):
        k = top_k[rows]
        weights = values.double().exp() * (torch.arange(values.shape[1], device=values.device) < k)
        limit = top_p[rows] * torch.where(k == size, mass[rows], weights.sum(-1, keepdim=True))
        kept = (weights > 0) & (weights.cumsum(-1) - weights < limit)
        mine, places = draws.of(at[rows], num_rows)
        draws.tokens[mine] = _best_of_kept(values.masked_fill(~kept, EXCLUDED), ids, places, draws.keys[mine])


def _best_of_kept(values: Tensor, ids: Tensor, places: Tensor, keys: Tensor) -> Tensor:
    """Token ids int64 [d] of draws from rows `places` of log-weights [n, W] of tokens ids [n, W]."""
    winners = torch.empty(len(places), dtype=torch.int64, device=values.device)
    for part in torch.arange(len(places), device=values.device).split(max(1, AT_ONCE // values.shape[1])):
        row, tokens = values[places[part]], ids[places[part]]
        score = row + gumbel(tokens.int(), keys[part].unsqueeze(1))
        winners[part] = tokens.gather(1, score.argmax(-1, keepdim=True)).squeeze(1)
    return winners


def column(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[R, 1]"""
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device).unsqueeze(1)
