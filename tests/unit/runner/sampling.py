"""Helpers of the sampler's tests: specs in one line, and what a row's distribution should be, written without haste."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvtrove.request import SamplingParams
from kvtrove.runner.random import draw_keys
from kvtrove.runner.sampler import Sampler
from kvtrove.scheduler.output import SampleSpec


def spec(
    *,
    seed: int = 7,
    streams: Sequence[int] = (0,),
    position: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Sequence[int] = (),
    candidates: int = 0,
    **params: Any,
) -> SampleSpec:
    return SampleSpec(
        SamplingParams(**params),
        seed,
        tuple(streams),
        position,
        array("i", prompt),
        array("i", output),
        tuple(banned),
        candidates,
    )


def sample(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[list[int]]:
    rows = Sampler(logits.shape[1], "cpu").sample(logits, specs)
    return [[token.token_id for token in row] for row in rows]


def adjusted_by_hand(logits: NDArray[np.float64], s: SampleSpec) -> NDArray[np.float64]:
    x, p = logits.copy(), s.params
    for token in range(len(x)):
        if p.allowed_token_ids is not None and token not in p.allowed_token_ids:
            x[token] = -np.inf
        x[token] += (p.logit_bias or {}).get(token, 0.0)
        if token in s.banned:
            x[token] = -np.inf
        if token in s.prompt or token in s.output:
            x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
        count = list(s.output).count(token)
        x[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
    return x


def distribution(logits: NDArray[np.float64], s: SampleSpec) -> NDArray[np.float64]:
    """Probabilities [V] from which a token of this row must come, in float64."""
    x = adjusted_by_hand(logits, s) / s.params.temperature
    p = np.exp(x - x.max())
    p[p < s.params.min_p * p.max()] = 0.0
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    if s.params.top_k > 0:
        p[order[s.params.top_k :]] = 0.0
    p /= p.sum()
    before = 0.0
    for token in order:
        share = p[token]
        if before >= s.params.top_p:
            p[token] = 0.0
        before += share
    return p / p.sum()


def noise_by_hand(s: SampleSpec, stream: int, size: int) -> NDArray[np.float64]:
    """Gumbel noise [size] of one draw, bit by bit in whole numbers."""
    k0, k1, k2, k3 = (int(word) % 2**32 for word in draw_keys([s.seed], [stream], [s.position])[0])
    u = [((_bits(t, k0, k1) << 21) + (_bits(t, k2, k3) >> 10) + 0.5) / 2**52 for t in range(size)]
    return -np.log(-np.log1p(-np.array(u)))


def _bits(token: int, first: int, second: int) -> int:
    x = (token ^ first) * 0x7FEB352D % 2**32
    x = ((x ^ x >> 15) + second) * 0x846CA68B % 2**32
    return (x ^ x >> 16) * 0x7FEB352D % 2**32 >> 1


def drawn_by_hand(logits: NDArray[np.float64], s: SampleSpec, first: int = 300) -> list[int]:
    """The very tokens of the first streams: the largest log-probability + noise of what may be drawn."""
    with np.errstate(divide="ignore"):
        log_p = np.log(distribution(logits, s))
    return [int(np.argmax(log_p + noise_by_hand(s, stream, len(log_p)))) for stream in s.streams[:first]]


def chi_square(counts: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """How many standard deviations the chi-square statistic lies above its mean; bins under 5 expected are merged."""
    expected = p * counts.sum()
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = max(1, used.sum() - 1)
    return float((statistic - freedom) / np.sqrt(2 * freedom))
