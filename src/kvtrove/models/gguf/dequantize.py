"""Blocks of a GGUF file -> float32, bit for bit what ggml's reference makes of them. No torch.

Each function takes the blocks of one type, uint8 [blocks, bytes of a block], and returns float32 [blocks, elements].
d is a scale and m a minimum, both float16 in the file; qs are the codes, low nibbles before high ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from kvtrove.models.spec import ModelError

Blocks = NDArray[np.uint8]
Floats = NDArray[np.float32]
InGroups = tuple[Blocks, Floats, Floats]
"""Numbers [blocks, elements], scales and minima [blocks, elements / 32]."""

_NON_LINEAR = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32
)  # of IQ4_NL and IQ4_XS
_E2M1 = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), dtype=np.float32)  # of MXFP4, doubled


def half(blocks: Blocks, at: int) -> Floats:
    """The float16 at byte `at` of every block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(codes: Blocks, group: int = 32) -> Blocks:
    """uint8 [blocks, n] -> [blocks, 2 n]: in each `group` the low halves of its bytes, then the high ones."""
    halves = codes.reshape(len(codes), -1, group // 2)
    both = np.empty((*halves.shape[:2], 2, group // 2), np.uint8)
    np.bitwise_and(halves, 15, out=both[:, :, 0])
    np.right_shift(halves, 4, out=both[:, :, 1])
    return both.reshape(len(codes), -1)


def _fifth_bits(blocks: Blocks, at: int) -> Blocks:
    """32 bits at byte `at`, one per code, as 16 or 0."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Blocks) -> Floats:
    return half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: Blocks) -> Floats:
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).view(np.int8) - 8)


def _q4_1(blocks: Blocks) -> Floats:
    return half(blocks, 0) * nibbles(blocks[:, 4:]) + half(blocks, 2)


def _q5_0(blocks: Blocks) -> Floats:
    return half(blocks, 0) * ((nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).view(np.int8) - 16)


def _q5_1(blocks: Blocks) -> Floats:
    return half(blocks, 0) * (nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)) + half(blocks, 2)


def k_scales(blocks: Blocks) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 groups of Q4_K and Q5_K, [blocks, 8, 1]: 6 bits of twelve bytes, times d and m."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return (half(blocks, 0) * scales)[..., None], (half(blocks, 2) * minima)[..., None]


def _q4_k(blocks: Blocks) -> Floats:
    scales, minima = k_scales(blocks)
    codes = nibbles(blocks[:, 16:], 64).reshape(-1, 8, 32)
    return (scales * codes - minima).reshape(len(blocks), 256)


def _q5_k_codes(blocks: Blocks) -> Blocks:
    """[blocks, 8, 32]"""
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return nibbles(blocks[:, 48:], 64).reshape(-1, 8, 32) | fifth.astype(np.uint8)


def _q5_k(blocks: Blocks) -> Floats:
    scales, minima = k_scales(blocks)
    return (scales * _q5_k_codes(blocks) - minima).reshape(len(blocks), 256)


def _q6_k(blocks: Blocks) -> Floats:
    scales = (half(blocks, 208) * blocks[:, 192:208].view(np.int8))[..., None]
    low = nibbles(blocks[:, :128], 128).reshape(-1, 8, 32)
    shifts = np.array((0, 2, 4, 6), dtype=np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 8, 32) << 4
    codes = (low | high).view(np.int8) - 32
    return (scales * codes.reshape(-1, 16, 16)).reshape(len(blocks), 256)


def _iq4_nl(blocks: Blocks) -> Floats:
    return half(blocks, 0) * _NON_LINEAR[nibbles(blocks[:, 2:])]


def _iq4_xs_scales(blocks: Blocks) -> Floats:
    """[blocks, 8]"""
    low = nibbles(blocks[:, 4:8], 2)  # neighbours share a byte
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return half(blocks, 0) * ((low | high.astype(np.uint8) << 4).view(np.int8) - 32)


def _iq4_xs(blocks: Blocks) -> Floats:
    codes = _NON_LINEAR[nibbles(blocks[:, 8:])].reshape(-1, 8, 32)
    return (_iq4_xs_scales(blocks)[..., None] * codes).reshape(len(blocks), 256)


def _mxfp4(blocks: Blocks) -> Floats:
    """Scales are powers of two, stored as exponents; codes are twice an E2M1 float (OCP microscaling formats)."""
    exponents = blocks[:, :1].astype(np.uint32)
    bits = np.where(exponents < 2, np.uint32(0x00200000) << exponents, (exponents - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32) * _E2M1[nibbles(blocks[:, 1:])]


def _groups_q4_0(blocks: Blocks) -> InGroups:
    scales = half(blocks, 0)
    return nibbles(blocks[:, 2:]), scales, scales * np.float32(-8)


def _groups_q4_1(blocks: Blocks) -> InGroups:
    return nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2)


def _groups_q4_k(blocks: Blocks) -> InGroups:
    scales, minima = k_scales(blocks)
    return nibbles(blocks[:, 16:], 64), scales[..., 0], -minima[..., 0]


def _symmetric(numbers: NDArray[np.int8], scales: Floats) -> InGroups:
    """numbers: [blocks, elements], which become 0..255 around 128."""
    return numbers.view(np.uint8) ^ np.uint8(128), scales, scales * np.float32(-128)


def _groups_q8_0(blocks: Blocks) -> InGroups:
    return _symmetric(blocks[:, 2:].view(np.int8), half(blocks, 0))


def _groups_q5_0(blocks: Blocks) -> InGroups:
    return _symmetric((nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).view(np.int8) - np.int8(16), half(blocks, 0))


def _groups_q5_1(blocks: Blocks) -> InGroups:
    return nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), half(blocks, 0), half(blocks, 2)


def _groups_q5_k(blocks: Blocks) -> InGroups:
    scales, minima = k_scales(blocks)
    return _q5_k_codes(blocks).reshape(len(blocks), 256), scales[..., 0], -minima[..., 0]


def _groups_iq4_nl(blocks: Blocks) -> InGroups:
    return _symmetric(_NON_LINEAR[nibbles(blocks[:, 2:])].astype(np.int8), half(blocks, 0))


def _groups_iq4_xs(blocks: Blocks) -> InGroups:
    return _symmetric(_NON_LINEAR[nibbles(blocks[:, 8:])].astype(np.int8), _iq4_xs_scales(blocks))


GROUPS: Mapping[str, tuple[int, Callable[[Blocks], InGroups]]] = {
    "Q4_0": (4, _groups_q4_0),
    "Q4_1": (4, _groups_q4_1),
    "Q4_K": (4, _groups_q4_k),
    "Q8_0": (8, _groups_q8_0),
    "Q5_0": (8, _groups_q5_0),
    "Q5_1": (8, _groups_q5_1),
    "Q5_K": (8, _groups_q5_k),
    "IQ4_NL": (8, _groups_iq4_nl),
    "IQ4_XS": (8, _groups_iq4_xs),
}
"""Types that are scale * number + minimum, for 32 elements each: bits of the numbers here, what takes them apart."""

READERS: Mapping[str, Callable[[Blocks], Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
"""Name of a type -> what reads its blocks."""


def dequantize(name: str, blocks: Blocks) -> Floats:
    """Blocks of the type `name`, uint8 [blocks, bytes], as float32 [blocks, elements]. ModelError for other types."""
    if name not in READERS:
        raise ModelError(f"type {name} is not read; supported: F32, F16, BF16, {', '.join(READERS)}")
    return READERS[name](blocks)
