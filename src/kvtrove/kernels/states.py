"""Mixers with a running state on the CPU (cpu/states.h): each a call a layer and step, whatever the number of tokens.

A token's bits depend on the tokens before it alone: not on who shares the step, nor on how a prompt is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.kernels import _extension
from kvtrove.kernels.rows import serves


def available(x: Tensor) -> bool:
    """Whether these kernels are here and take such numbers."""
    return serves(x) and kernels.available()


def beside(parts: Sequence[Tensor]) -> Tensor:
    """[T, sum of widths]: the memory of the parts where they lie behind each other in every row, else a copy."""
    first = parts[0]
    at = first.data_ptr()
    for part in parts:
        if part.data_ptr() != at or part.stride() != first.stride() or part.stride(1) != 1:
            return torch.cat([*parts], -1)
        at += part.shape[1] * part.element_size()
    return first.as_strided((first.shape[0], sum(part.shape[1] for part in parts)), first.stride())


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor, seats: Tensor, *, silu: bool = False
) -> Tensor:
    """float32 [T, width], a depthwise convolution over the tokens of each sequence, then silu where it is asked for.

    x: [T, width], rows without gaps. weight: float32 [kernel, width]. bias: float32 [width]. state: [num_seats,
    kernel - 1, width] of x's dtype, updated. starts: int64 [S + 1]; seats: int64 [S]. TypeError for other arrays.
    """
    width, kernel = x.shape[1], weight.shape[0]
    fits = state.dtype == x.dtype and state.shape[1:] == (kernel - 1, width) and state[0].is_contiguous()
    if not (fits and x.stride(1) == 1 and weight.is_contiguous() and weight.dtype == torch.float32):
        raise TypeError(f"convolve: x {x.dtype} {list(x.shape)} and state {state.dtype} {list(state.shape)} do not fit")
    y = torch.empty(x.shape, dtype=torch.float32)
    _extension().convolve(
        *(x.data_ptr(), x.dtype == torch.bfloat16, x.stride(0), width, kernel, weight.data_ptr()),
        *(0 if bias is None else bias.data_ptr(), state.data_ptr(), state.stride(0), y.data_ptr(), silu),
        *(starts.data_ptr(), seats.data_ptr(), len(seats)),
    )
    return y


def gated_delta(
    mixed: Tensor,
    z: Tensor,
    b: Tensor,
    a: Tensor,
    matrix: Tensor,
    starts: Tensor,
    seats: Tensor,
    *,
    key_heads: int,
    decay: Tensor,
    dt: Tensor,
    norm: Tensor,
    eps: float,
    unit_eps: float,
) -> Tensor:
    """What the heads of Gated DeltaNet read, normed and gated: [T, value_heads * v_dim] of z's dtype.

    mixed: float32 [T, width], q, k and v behind the convolution. z: [T, value_heads * v_dim]; b, a: [T, value_heads],
    of one dtype and stride. matrix: float32 [num_seats, value_heads, k_dim, v_dim], updated. decay, dt: float32
    [value_heads]. norm: float32 [v_dim]. TypeError for other arrays.
    """
    _, heads, k_dim, v_dim = matrix.shape
    whole = (decay, dt, norm, matrix[0], mixed)
    if not all(one.dtype == torch.float32 and one.is_contiguous() for one in whole):
        raise TypeError("gated_delta: mixed, matrix, decay, dt and norm must be float32 without gaps")
    if mixed.shape[1] != 2 * key_heads * k_dim + heads * v_dim or not z.stride(0) == b.stride(0) == a.stride(0):
        raise TypeError(f"gated_delta: mixed {list(mixed.shape)} does not fit a matrix {list(matrix.shape)}")
    out = torch.empty(z.shape, dtype=z.dtype)
    _extension().gated_delta(
        *(mixed.data_ptr(), key_heads, heads, k_dim, v_dim, decay.data_ptr(), dt.data_ptr(), norm.data_ptr()),
        *(eps, unit_eps, z.data_ptr(), b.data_ptr(), a.data_ptr(), z.dtype == torch.bfloat16, z.stride(0)),
        *(matrix.data_ptr(), matrix.stride(0), out.data_ptr(), starts.data_ptr(), seats.data_ptr(), len(seats)),
    )
    return out
