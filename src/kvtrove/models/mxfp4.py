"""MXFP4, the microscaling format of 4 bits (OCP MX 1.0; arXiv 2310.10537): the experts of gpt-oss are published in it.

    group of 32 numbers   | 16 bytes: codes E2M1, the earlier number in the low half | 1 byte: exponent E8M0 |

A number is code * 2 ** (exponent - 127). bfloat16 holds every one of them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.kernels.linear import E2M1, Groups

GROUP = 32
"""Numbers that share an exponent."""
EXPONENTS = 104, 143
"""Smallest and largest exponent of which half is a scale that float16 holds exactly."""


def numbers(blocks: Tensor, exponents: Tensor) -> Tensor:
    """bfloat16 [rows, groups * 32] of blocks uint8 [rows, groups, 16] and exponents uint8 [rows, groups]."""
    signed = torch.tensor(E2M1, dtype=torch.bfloat16) / 2
    pairs = torch.stack((signed.repeat(16), signed.repeat_interleave(16)), dim=-1).view(torch.int32)[:, 0]
    codes = pairs[blocks.int()].view(torch.bfloat16)  # one lookup for both halves of a byte
    scales = (exponents.int() << 23).view(torch.float32).to(torch.bfloat16)  # the bits of 2 ** (exponent - 127)
    return (codes * scales[..., None]).flatten(1)


def groups(blocks: Tensor, exponents: Tensor) -> Groups:
    """The same as it is stored, of exponents within EXPONENTS: codes stand for doubled numbers, scales are halved."""
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
    scales = torch.exp2(exponents.float() - 128)
    return Groups(codes, scales, torch.zeros_like(scales), codes=True)
