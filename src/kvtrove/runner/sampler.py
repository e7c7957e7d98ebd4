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
from kvtrove.runner.draw import column, draw
from kvtrove.runner.logprobs import TokenText, logprob_table, tables_of, usable
from kvtrove.runner.ranking import EXCLUDED, rankings, take
from kvtrove.scheduler.output import SampledToken, SampleSpec

__all__ = ["Sampler", "logprob_table"]


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
        for row, tokens in zip(drawn, pick_drawn(take(logits, drawn), [specs[row] for row in drawn]), strict=True):
            picked[row] = tokens
    for row in lost:
        picked[row] = []
    return picked


def pick_drawn(logits: Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    """A token per stream of every row, by temperature, min_p, top_k, top_p and the row's noise."""
    scaled = logits - logits.amax(-1, keepdim=True)  # first: a quotient could overflow where a difference cannot
    scaled /= column([s.params.temperature for s in specs], logits)
    if any(s.params.min_p for s in specs):
        floor = column([math.log(s.params.min_p) if s.params.min_p else EXCLUDED for s in specs], logits)
        scaled.masked_fill_(scaled < floor, EXCLUDED)
    return draw(scaled, specs)


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
        listed = tables_of(
            take(logits, wanted), take(total, wanted), [chosen[row] for row in wanted], top_k, token_text
        )
        tables = dict(zip(wanted, listed, strict=True))
    return [
        [SampledToken(t, next(logprobs), tables[row][n] if row in tables else None) for n, t in enumerate(row_tokens)]
        for row, row_tokens in enumerate(chosen)
    ]
