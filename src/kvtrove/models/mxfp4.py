"""MXFP4, the microscaling format of 4 bits (OCP MX 1.0; arXiv 2310.10537): the experts of gpt-oss are published in it.

    group of 32 numbers   | 16 bytes: codes E2M1, the earlier number in the low half | 1 byte: exponent E8M0 |

A number is code * 2 ** (exponent - 127). bfloat16 holds every one of them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Numbers that share an exponent."""
CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of E2M1; the codes from 8 on are their negatives."""


def numbers(blocks: Tensor, exponents: Tensor) -> Tensor:
    """bfloat16 [rows, groups * 32] of blocks uint8 [rows, groups, 16] and exponents uint8 [rows, groups]."""
    signed = torch.tensor([*CODES, *(-code for code in CODES)], dtype=torch.bfloat16)
    pairs = torch.stack((signed.repeat(16), signed.repeat_interleave(16)), dim=-1).view(torch.int32)[:, 0]
    codes = pairs[blocks.int()].view(torch.bfloat16)  # one lookup for both halves of a byte
    scales = (exponents.int() << 23).view(torch.float32).to(torch.bfloat16)  # the bits of 2 ** (exponent - 127)
    return (codes * scales[..., None]).flatten(1)
