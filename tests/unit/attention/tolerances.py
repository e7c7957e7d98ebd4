"""How far an answer of the attention kernels may lie from exact arithmetic over what the cache holds.

An answer is a mean of values. Weights that are off by a factor within 1 +- e move it by at most e times the mean
distance of the values from it, which is no more than the largest |value|, V below. A score that is off by d is such a
factor, d.

    level, cache                   what is rounded                              moves an answer by at most
    all                            sums in float32                              SUMS * V
    all, int8 and int4 keys        queries, to 15 bits                          INT8 * V
    all, int8 and int4 values      weights, to 15 bits                          INT8 * V
    amx, bfloat16, tiled keys      a query in float32, to 16 bits               2^-17 * sum |q k| * scale * V
    amx, bfloat16, tiled values    weights, to bfloat16: 8 bits, half a step    2^-9 * V
                                   exponentials, by a polynomial                2^-13 * V

Sums: of n numbers in random order, about sqrt(n) half steps of float32: 2^-24 * sqrt(512) of each score's terms, which
the tests keep below 8 in sum. INT8: half a step is 2^-15 of the largest; 256 independent ones add up to about
16 / sqrt(3) of it, and three times that is never seen.
"""

from __future__ import annotations

SUMS = 8 * 2.0**-24 * 512**0.5
INT8 = 3 * 16 / 3**0.5 * 2.0**-15
BFLOAT16_WEIGHT = 2.0**-9 + 2.0**-13
SPLIT_QUERY = 2.0**-17


def tolerance(k: str, v: str, level: str, largest: float, scores: float = 0.0) -> float:
    """For keys and values stored as `k` and `v`: values up to `largest`, scores of terms of `scores` in sum."""
    relative = SUMS + INT8 * sum(side.startswith("int") for side in (k, v))
    if level == "amx":
        relative += SPLIT_QUERY * scores * k.startswith("b") + BFLOAT16_WEIGHT * v.startswith("b")
    return relative * largest
