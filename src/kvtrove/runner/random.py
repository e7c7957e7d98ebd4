"""Uniform numbers without state: the number that belongs to (seed, stream, position) is a pure function of the three.

Nothing is carried from draw to draw, so a token does not depend on which rows share its batch, on their order, on
preemption, or on how often the sequence was forked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

Words = list[NDArray[np.uint64]]


def philox(counter: Words, key: Words) -> Words:
    """Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    counter: four and key: two arrays uint64 [N] of 32-bit words. Returns four random words [N] per counter.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (right >> _32) ^ c1 ^ k0, right & _LOW, (left >> _32) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


def uniform(seeds: list[int], streams: list[int], positions: list[int]) -> NDArray[np.float64]:
    """float64 [N] in [0, 1), one per (seed, stream, position); seeds of any size and sign count modulo 2**64."""
    seed = np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64)
    stream, position = np.array(streams, dtype=np.uint64), np.array(positions, dtype=np.uint64)
    counter = [position & _LOW, position >> _32, stream & _LOW, stream >> _32]
    high, low, _, _ = philox(counter, [seed & _LOW, seed >> _32])
    return ((high >> np.uint64(5)) * 2.0**26 + (low >> np.uint64(6))) * 2.0**-53  # 27 + 26 bits, all of a double's
