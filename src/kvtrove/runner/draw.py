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

from kvtrove.kernels.draw import limit, race
from kvtrove.runner.random import draw_keys, gumbel, token_bits
from kvtrove.runner.ranking import EXCLUDED, rankings, take
from kvtrove.scheduler.output import SampleSpec

AT_ONCE = 1 << 18  # tokens of all draws that are looked at together: what lies between two operations stays in a cache
SLACK = 1 + 1e-4  # far beyond the rounding of float32


def draw(scaled: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """A token per stream of every row. scaled: float32 [R, V] log-weights, the largest of a row 0, excluded ones -inf;
    top_k and top_p of the specs are still to be applied.
    """
    weights, size = scaled.exp(), scaled.shape[1]
    top_k = [s.params.top_k if 0 < s.params.top_k < size else size for s in specs]
    top_p = [s.params.top_p for s in specs]
    if min(top_k) < size or min(top_p) < 1:
        limits = torch.tensor(top_k), torch.tensor(top_p, dtype=torch.float64)
        (limit if scaled.is_cpu else _limit)(scaled, weights, *(one.to(scaled.device) for one in limits))
    tokens = iter(best_of_all(scaled, weights, *_draws(specs, scaled.device)).tolist())
    return [[next(tokens) for _ in s.streams] for s in specs]


def _draws(specs: Sequence[SampleSpec], device: torch.device) -> tuple[Tensor, Tensor]:
    """(places int64 [D], keys int32 [D, 4]): row and key of every draw, one per stream of each spec."""
    counts = torch.tensor([len(s.streams) for s in specs], device=device)
    seeds = [s.seed for s in specs for _ in s.streams]
    positions = [s.position for s in specs for _ in s.streams]
    keys = draw_keys(seeds, [stream for s in specs for stream in s.streams], positions)
    return torch.repeat_interleave(counts), torch.from_numpy(keys).to(device)


def best_of_all(scaled: Tensor, weights: Tensor, places: Tensor, keys: Tensor) -> Tensor:
    """Token ids int64 [d] of draws from rows `places` of scaled [n, V]. weights: of the tokens that take part, else 0.

    Noise over a whole vocabulary would cost two logarithms a token. Seen as a race, weight w finishes at
    -log(1 - u) / w, which is at least u / w: only tokens whose u / w is below the finish of one runner can win, mostly
    one to three, and only these get their noise.
    """
    if not scaled.is_cpu:
        return _race(scaled, weights, places, keys)
    candidates, counts = race(weights, places, keys)
    most = int(counts.max())
    if most > candidates.shape[1]:  # hardly ever
        return _race(scaled, weights, places, keys)
    listed = torch.arange(most) < counts.unsqueeze(1)
    tokens = candidates[:, :most].masked_fill_(~listed, 0)
    values = scaled[places.unsqueeze(1), tokens].masked_fill_(~listed, EXCLUDED)
    first = (values + gumbel(tokens, keys.unsqueeze(1))).argmax(-1, keepdim=True)
    return tokens.gather(1, first).squeeze(1).long()


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


def _limit(scaled: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """What `kernels.draw.limit` does, in torch."""
    size = scaled.shape[1]
    limited = ((top_k < size) | (top_p < 1)).nonzero().squeeze(1)
    scaled, own, k, p = take(scaled, limited), take(weights, limited), top_k[limited, None], top_p[limited, None]
    mass = own.sum(-1, keepdim=True, dtype=torch.float64)

    def enough(rows: Tensor, values: Tensor) -> Tensor:
        known = (values > EXCLUDED).sum(-1, keepdim=True) >= k[rows]
        covered = values.double().exp().sum(-1, keepdim=True) >= SLACK * (p * mass)[rows]
        return (known | (covered & (k[rows] == size))).squeeze(1)

    for rows, values, ids in rankings(scaled, enough):
        best = (values > EXCLUDED) & (torch.arange(values.shape[1], device=values.device) < k[rows])
        wide = own[rows].gather(1, ids).double() * best
        whole = torch.where(k[rows] == size, mass[rows], wide.sum(-1, keepdim=True))
        kept = wide * ((wide.cumsum(-1) - wide < p[rows] * whole) | (p[rows] == 1))
        weights[limited[rows]] = torch.zeros_like(own[rows]).scatter_(1, ids, kept.float())


def column(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[R, 1]"""
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device).unsqueeze(1)
