"""RMSNorm of float32 rows in one pass, where torch needs seven operations."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.kernels import _extension


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467); same shape as x.

    x: float32 [..., size] on the CPU, any strides. weight: float32 [size]. A row's bits depend on nothing but the row.
    TypeError for other dtypes or devices, ValueError for another weight.
    """
    if x.dtype != torch.float32 or not x.is_cpu:
        raise TypeError(f"x is {x.dtype} on {x.device}, expected float32 on the CPU")
    if weight.shape != x.shape[-1:] or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}, expected float32 {list(x.shape[-1:])}")
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.shape[-1]
    _extension().rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // size if size else 0, size, eps)
    return y
