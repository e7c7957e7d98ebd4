"""How far equal sides lie apart by chance: within a run, and between runs that took turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from kvtrove.bench.record import Floats
from kvtrove.bench.summary import GROUPS

CHANCE = 0.05  # that a comparison of equal sides names any difference
ENOUGH = 6  # pairs of runs: of fewer, every outcome is likelier than CHANCE
_FREEDOM = GROUPS - 1  # degrees of freedom of one jackknife
_EVERY_SWAP = 12  # pairs, up to which all 2**11 ways to swap their sides are tried
_SWAPS = 4096  # that are drawn of more pairs


def of_requests(measures: int) -> float:
    """Standard errors within which all of `measures` lie in 95 of 100 comparisons of runs that differ by chance alone.

    Student's t at CHANCE / measures (Bonferroni), by the expansion of Cornish and Fisher (Abramowitz and Stegun,
    26.7.5): an error that 20 stretches tell is itself uncertain, most of all far out.
    """
    z, freedom = NormalDist().inv_cdf(1 - CHANCE / (2 * measures)), float(_FREEDOM)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def of_turns(differences: Floats) -> Floats:
    """How far chance moves the mean difference of each measure; all stay within it in 95 of 100 comparisons.

    differences: [pairs, measures]; infinite where another order would have told as much of any.

    Equal sides could have come in the other order in any pair, so each way to swap sides is as likely as what was seen;
    the largest t of all measures is compared with those of all ways (sign flips, Fisher 1935; the maximum: Westfall and
    Young 1993). Nothing is assumed of the noise: neighbours may come and go, and measures may move together.
    """
    pairs = len(differences)
    if pairs <= _EVERY_SWAP:  # the first pair stays: swapping every pair changes no size
        signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=pairs - 1)], dtype=float)
    else:
        signs = np.random.default_rng(pairs).choice((1.0, -1.0), (_SWAPS, pairs))
        signs[0] = 1.0
    means = signs @ differences / pairs
    squares = (differences**2).mean(axis=0)
    variances = squares - means**2
    variances[variances < 1e-12 * squares] = 0.0  # what rounding leaves of equal differences
    errors = np.sqrt(variances / max(1, pairs - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.where(means == 0, 0.0, np.abs(means) / errors)
    largest = np.sort(sizes.max(axis=1, initial=0.0))[::-1]
    limit = largest[int(CHANCE * len(largest))] * (1 + 1e-9)  # what was seen is a way, too, and does not pass itself
    return np.full(len(squares), np.inf) if np.isinf(limit) else np.asarray(limit * errors[0])


def in_turn(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether both runs of a pair began before either of the next one. Times of ISO 8601, in the order of the runs."""
    both = list(zip(before, after, strict=True))
    return all(max(pair) <= min(following) for pair, following in itertools.pairwise(both))
