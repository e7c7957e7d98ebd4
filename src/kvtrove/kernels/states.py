"""Mixers with a running state on the CPU (cpu/layers/states.h): each a call a layer and step, whatever its tokens.

A token's bits depend on the tokens before it alone: not on who shares the step, nor on how a prompt is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    taps = _taps(weight, bias, silu)
    _check_conv(state, x, weight)
    y = torch.empty(x.shape, dtype=torch.float32)
    _extension().convolve(
        *(taps, x.data_ptr(), x.dtype == torch.bfloat16, x.stride(0), state.data_ptr(), state.stride(0), y.data_ptr()),
        *(starts.data_ptr(), seats.data_ptr(), len(seats)),
    )
    return y


class _Mixer:
    """One layer. numbers: float32 without gaps, kept alive here. TypeError for other arrays."""

    def __init__(self, conv: Tensor, bias: Tensor | None, numbers: Sequence[Tensor], inputs: int, outputs: int) -> None:
        if not all(one.dtype == torch.float32 and one.is_contiguous() for one in numbers):
            raise TypeError("a mixer's numbers must be float32 without gaps")
        self.conv, self.taps = conv, _taps(conv, bias, silu=True)
        self.inputs, self.outputs, self._kept = inputs, outputs, (conv, bias, *numbers)
        self.layer: Any = None

    def __call__(self, projected: Tensor, states: Mapping[str, Tensor], starts: Tensor, seats: Tensor) -> Tensor:
        """[T, outputs] of projected [T, inputs]'s dtype, rows without gaps.

        states: "conv" [num_seats, kernel - 1, width] of that dtype, "matrix" float32 [num_seats, ...], updated. starts:
        int64 [S + 1]; seats: int64 [S].
        """
        conv, matrix = states["conv"], states["matrix"]
        if projected.shape[1] != self.inputs or projected.stride(1) != 1:
            raise TypeError(f"{list(projected.shape)} are not the {self.inputs} projections of this layer")
        if matrix.dtype != torch.float32 or not matrix[0].is_contiguous():
            raise TypeError(f"a matrix is {matrix.dtype} {list(matrix.shape)}, float32 without gaps is needed")
        _check_conv(conv, projected, self.conv)
        out = torch.empty((projected.shape[0], self.outputs), dtype=projected.dtype)
        self.layer.mix(
            *(projected.data_ptr(), projected.dtype == torch.bfloat16, projected.stride(0)),
            *(conv.data_ptr(), conv.stride(0), matrix.data_ptr(), matrix.stride(0), out.data_ptr()),
            *(starts.data_ptr(), seats.data_ptr(), len(seats), *self.workspace(projected.shape[0])),
        )
        return out

    def workspace(self, tokens: int) -> tuple[int, ...]:
        """Addresses of memory that a call needs beside."""
        return ()


class DeltaKernel(_Mixer):
    """Gated DeltaNet: q | k | v | z | b | a in, what heads read, normed and gated, out.

    conv: float32 [kernel, width]. decay, dt: float32 [value_heads]. norm: float32 [v_dim].
    """

    def __init__(
        self,
        conv: Tensor,
        decay: Tensor,
        dt: Tensor,
        norm: Tensor,
        *,
        key_heads: int,
        k_dim: int,
        eps: float,
        unit_eps: float,
    ) -> None:
        heads, v_dim = len(decay), len(norm)
        width = 2 * key_heads * k_dim + heads * v_dim
        if conv.shape[1] != width or heads % key_heads:
            raise TypeError(f"a convolution of {conv.shape[1]} channels does not fit {heads} heads of {v_dim}")
        super().__init__(conv, None, (decay, dt, norm), width + heads * (v_dim + 2), heads * v_dim)
        self.layer = _extension().Delta(
            *(self.taps, key_heads, heads, k_dim, v_dim, decay.data_ptr(), dt.data_ptr(), norm.data_ptr()),
            *(eps, unit_eps),
        )


class MambaKernel(_Mixer):
    """Mamba2: z | x, B, C | dt in, y normed in each group and gated out.

    conv: float32 [kernel, width]; bias: float32 [width]. decay, skip, dt: float32 [heads]. norm: float32 [inner].
    limits: shortest and longest time step.
    """

    def __init__(
        self,
        conv: Tensor,
        bias: Tensor | None,
        decay: Tensor,
        skip: Tensor,
        dt: Tensor,
        norm: Tensor,
        *,
        state: int,
        groups: int,
        eps: float,
        limits: tuple[float, float],
    ) -> None:
        heads, inner = len(decay), len(norm)
        if conv.shape[1] != inner + 2 * groups * state or inner % heads or heads % groups:
            raise TypeError(f"a convolution of {conv.shape[1]} channels does not fit {heads} heads of {inner} channels")
        super().__init__(conv, bias, (decay, skip, dt, norm), inner + conv.shape[1] + heads, inner)
        self.layer = _extension().Mamba(
            *(self.taps, heads, inner // heads, state, groups, decay.data_ptr(), skip.data_ptr(), dt.data_ptr()),
            *(norm.data_ptr(), eps, *limits),
        )

    def workspace(self, tokens: int) -> tuple[int, ...]:
        self._memory = torch.empty((tokens, self.conv.shape[1]), dtype=torch.float32)
        return (self._memory.data_ptr(),)


def _taps(weight: Tensor, bias: Tensor | None, silu: bool) -> Any:
    plain = all(x is None or (x.dtype == torch.float32 and x.is_contiguous()) for x in (weight, bias))
    if not plain:
        raise TypeError("weight and bias of a convolution must be float32 without gaps")
    kernel, width = weight.shape
    return _extension().Taps(weight.data_ptr(), 0 if bias is None else bias.data_ptr(), width, kernel, silu)


def _check_conv(state: Tensor, x: Tensor, weight: Tensor) -> None:
    kernel, width = weight.shape
    fits = state.dtype == x.dtype and state.shape[1:] == (kernel - 1, width) and state[0].is_contiguous()
    if not fits or x.stride(1) != 1:
        raise TypeError(
            f"x {x.dtype} {list(x.shape)} and a convolution's state {state.dtype} {list(state.shape)} do not fit"
        )
