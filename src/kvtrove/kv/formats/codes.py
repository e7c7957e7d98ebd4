"""Codes of 4 or 2 bits in place of numbers: how they are found, packed into bytes, and turned beforehand.

    x [dim]  ->  code in 0 .. 2^bits - 1,  scale and zero in float16:  x ~ zero + scale * code

A *group* of elements shares scale and zero: a token's whole vector, or `group` neighbours of it, or one element of all
tokens of a block. Scale and zero are fitted by least squares to the codes of an even grid from minimum to maximum, and
every code is then the nearest one: 5 % less squared error than the grid has with 4 bits, 30 % less with 2.

Planes of a side (K or V) that kernels read, with b = dim * bits / 8 bytes a vector:

    data    uint8, laid out as int8 of b elements is (layout.py): a token's vector fills whole bytes.
            Byte j holds the codes of elements j, j + b, ... from its lowest bits up
    scale   float16 [kv_heads, block_size], or [kv_heads, dim / group, block_size], or per element [kv_heads, dim]
    zero    as scale

`turn` spreads outliers over a vector: fixed signs, then the Hadamard transform of each run of b elements, with b the
largest power of two that divides dim. It is orthonormal, so products of turned vectors are those of the vectors:
queries are turned, and what values add up to is turned back (QuaRot, arXiv 2404.00456).

Tensors are used by their methods alone, so that this needs no torch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST, SMALLEST = 65504.0, 2.0**-24  # of float16


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 like x, scale and zero float16 [..., 1], of groups x [..., elements]; in float32, fits in float64."""
    wide, most, n = x.float(), float(2**bits - 1), x.shape[-1]
    low = wide.amin(-1, keepdim=True)
    step = ((wide.amax(-1, keepdim=True) - low) / most).clamp(min=SMALLEST)
    codes, exact = ((wide - low) / step).round().clamp(0.0, most).double(), wide.double()
    total, squares = codes.sum(-1, keepdim=True), (codes * codes).sum(-1, keepdim=True)
    sums, products = exact.sum(-1, keepdim=True), (exact * codes).sum(-1, keepdim=True)
    slope = (n * products - total * sums) / (n * squares - total * total).clamp(min=1.0)
    scale = slope.float().clamp(SMALLEST, LARGEST).half()
    zero = ((sums - scale.double() * total) / n).float().clamp(-LARGEST, LARGEST).half()
    nearest = ((wide - zero.float()) / scale.float()).round().clamp(0.0, most)
    return nearest.byte(), scale, zero


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """float32: zero + scale * code."""
    return codes.float() * scale.float() + zero.float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., dim * bits / 8] of codes uint8 [..., dim]."""
    parts = codes.reshape(*codes.shape[:-1], 8 // bits, -1)
    packed: Tensor = parts[..., 0, :].clone()
    for i in range(1, 8 // bits):
        packed |= parts[..., i, :] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., dim] of what `pack` gave."""
    codes = packed.new_empty((*packed.shape[:-1], 8 // bits, packed.shape[-1]))
    for i in range(8 // bits):
        codes[..., i, :] = packed >> (bits * i) & (2**bits - 1)
    return codes.flatten(-2)


def turn(x: Tensor) -> Tensor:
    """float32 [..., dim]: H (s * x)."""
    return _hadamard(x.float() * _signs(x))


def turn_back(x: Tensor) -> Tensor:
    """float32 [..., dim]: s * (H x)."""
    return _hadamard(x.float()) * _signs(x)


def _hadamard(x: Tensor) -> Tensor:
    """Of each run of b elements; kernels add up the same pairs in the same order."""
    dim = x.shape[-1]
    size, half = dim & -dim, 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = x.new_empty(pairs.shape)
        x[..., 0, :], x[..., 1, :] = a + b, a - b
        x, half = x.flatten(-3), half * 2
    return x * float(size**-0.5)


def _signs(x: Tensor) -> Tensor:
    return x.new_tensor(sign_list(x.shape[-1])).float()


@functools.cache
def sign_list(dim: int) -> tuple[float, ...]:
    """-1 or 1 for each element: a bit of its number, hashed (the last steps of MurmurHash3)."""
    signs = []
    for d in range(1, dim + 1):
        h = d ^ d >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        signs.append(-1.0 if (h ^ h >> 16) & 1 else 1.0)
    return tuple(signs)
