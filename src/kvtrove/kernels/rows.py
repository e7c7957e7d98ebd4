"""What happens to hidden states between two matrix products, in one pass where torch needs up to eight.

x: float32 or bfloat16 on the CPU. Arithmetic is float32; bfloat16 is rounded wherever torch, operation by operation,
would round it. A row's bits depend on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kvtrove.kernels import _extension

DTYPES = (torch.float32, torch.bfloat16)


def serves(x: Tensor) -> bool:
    """Whether these kernels take such numbers."""
    return x.is_cpu and x.dtype in DTYPES


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467); same shape as x.

    x: [..., size], any strides. weight: [size], of x's dtype, or float32: then the result is rounded once.
    TypeError for other dtypes or devices, ValueError for another weight.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    _extension().rms_norm(x.data_ptr(), y.data_ptr(), *_norm(x, weight, eps))
    return y


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x += added, in place; returns the norm of that. x, added: [..., size] of one shape and dtype, contiguous.

    TypeError and ValueError as for `rms_norm`.
    """
    if added.shape != x.shape or added.dtype != x.dtype or not (x.is_contiguous() and added.is_contiguous()):
        raise ValueError(
            f"added is {added.dtype} {list(added.shape)}, expected {x.dtype} {list(x.shape)}, both without gaps"
        )
    y = torch.empty_like(x)
    _extension().add_rms_norm(x.data_ptr(), added.data_ptr(), y.data_ptr(), *_norm(x, weight, eps))
    return y


def silu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, as in SwiGLU (arXiv 2002.05202). gate, up: [rows, size] of one dtype and layout.

    They may be parts of one tensor. TypeError for other dtypes or devices, ValueError for layouts that differ.
    """
    return _gated(_extension().silu_and_mul, gate, up)


def gelu_tanh_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, as in GeGLU (arXiv 2002.05202), gelu in its tanh form. Otherwise as `silu_and_mul`."""
    return _gated(_extension().gelu_tanh_and_mul, gate, up)


Gate = Literal["silu", "gelu_tanh"]
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"silu": silu_and_mul, "gelu_tanh": gelu_tanh_and_mul}
"""Of every `Gate`."""


def _gated(kernel: Callable[..., None], gate: Tensor, up: Tensor) -> Tensor:
    if not serves(gate):
        raise TypeError(f"gate is {gate.dtype} on {gate.device}, expected float32 or bfloat16 on the CPU")
    alike = gate.shape == up.shape and gate.dtype == up.dtype and gate.stride() == up.stride()
    if gate.ndim != 2 or not alike or gate.stride(1) != 1:
        raise ValueError(
            f"gate is {gate.dtype} {list(gate.shape)} with strides {gate.stride()}, up {up.dtype} {list(up.shape)} "
            f"with {up.stride()}; expected two alike [rows, size] with contiguous rows"
        )
    y = gate.new_empty(gate.shape)
    is_bf16 = gate.dtype == torch.bfloat16
    kernel(gate.data_ptr(), up.data_ptr(), y.data_ptr(), is_bf16, *gate.shape, gate.stride(0))
    return y


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[int, bool, bool, int, int, float]:
    """What the extension wants to know: weight, is_bf16, wide, rows, size, eps."""
    if not serves(x):
        raise TypeError(f"x is {x.dtype} on {x.device}, expected float32 or bfloat16 on the CPU")
    size = x.shape[-1]
    if weight.shape != (size,) or weight.dtype not in (x.dtype, torch.float32) or not weight.is_contiguous():
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}, expected {x.dtype} or float32 [{size}]")
    wide = weight.dtype != x.dtype
    return weight.data_ptr(), x.dtype == torch.bfloat16, wide, x.numel() // size if size else 0, size, eps
