"""Random bits without state: those of (seed, stream, position, token) are a pure function of the four.

Nothing is carried from draw to draw, so a token does not depend on which rows share its batch, on their order, on
preemption, or on how often the sequence was forked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_MIX = (0x7FEB352D, 0x846CA68B - 2**32)  # "lowbias32" of the hash prospector (C. Wellons): avalanche of all bits

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


def draw_keys(seeds: Sequence[int], streams: Sequence[int], positions: Sequence[int]) -> NDArray[np.int32]:
    """int32 [N, 4]: the key of each draw (seed, stream, position); seeds of any size and sign count modulo 2**64."""
    seed = np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64)
    stream, position = np.array(streams, dtype=np.uint64), np.array(positions, dtype=np.uint64)
    counter = [position & _LOW, position >> _32, stream & _LOW, stream >> _32]
    words = philox(counter, [seed & _LOW, seed >> _32])
    return np.stack(words, axis=1).astype(np.uint32).view(np.int32)


def token_bits(tokens: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """31 random bits of every token, int32 >= 0, in a new tensor.

    tokens: int32; first, second: words of the draws' keys; all three broadcast. A murmur-like mix of the token between
    the two words, the finest that costs little over a whole vocabulary.
    """
    x = (tokens ^ first).mul_(_MIX[0])
    x ^= (x >> 15).bitwise_and_(0x1FFFF)  # the shift of int32 copies the sign
    x.add_(second).mul_(_MIX[1])
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x.mul_(_MIX[0]).bitwise_right_shift_(1).bitwise_and_(0x7FFFFFFF)


def gumbel(tokens: Tensor, keys: Tensor) -> Tensor:
    """Standard Gumbel noise of tokens under their draws' keys, float64 from 52 random bits.

    tokens: int32 [...]; keys: int32 [..., 4], which broadcasts to them. Greater is better: the argmax of
    log-weight + noise is a draw by the weights (Gumbel 1954; Maddison et al., arXiv 1411.0030).
    """
    high = token_bits(tokens, keys[..., 0], keys[..., 1])
    low = token_bits(tokens, keys[..., 2], keys[..., 3]) >> 10
    uniform = ((high.double() * 2.0**21 + low) + 0.5) * 2.0**-52  # in (0, 1): both ends are excluded
    return -torch.log(-torch.log1p(-uniform))
