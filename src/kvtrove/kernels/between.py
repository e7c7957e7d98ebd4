"""A decoder layer between its attention and the next layer's, in one call (cpu/between.h)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kvtrove.kernels import _extension
from kvtrove.kernels.linear import PackedWeights
from kvtrove.kernels.rows import Gate


class Matrix(Protocol):
    """bias: float32 [outputs], or none."""

    @property
    def weights(self) -> PackedWeights: ...

    @property
    def bias(self) -> Tensor | None: ...


class Norm(Protocol):
    """RMSNorm: weight [hidden]; wide: it is float32 and the result is rounded once, else it has the dtype of x."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def eps(self) -> float: ...

    @property
    def wide(self) -> bool: ...


class Between:
    """x += o(mixed); x += down(silu(gate) * up) of norm(x); then next(next_norm(x)), or that norm alone without `next`.

    o_norm, down_norm: of what is added to x (sandwich norms). gate: the activation. mlp: gate_up and down; None ends it
    with norm(x), the input of another kind of MLP. dtype: of x, float32 or bfloat16.
    The bits are those of `linear` and `rows`, call by call. A few hundred rows pass at a time, so that what lies
    between two products stays small.
    ValueError when matrices or norms do not fit together.
    """

    def __init__(
        self,
        o: Matrix,
        norm: Norm,
        mlp: tuple[Matrix, Matrix] | None,
        next_norm: Norm | None,
        next: Matrix | None,
        dtype: torch.dtype,
        *,
        o_norm: Norm | None = None,
        down_norm: Norm | None = None,
        gate: Gate = "silu",
    ) -> None:
        self.dtype, self.inputs, self.hidden = dtype, o.weights.inputs, o.weights.outputs
        self.has_mlp, self.has_next = mlp is not None, next is not None
        self._kept = (o, norm, mlp, next_norm, next, o_norm, down_norm)
        gate_up, down = mlp or (None, None)
        norms = [norm_of(one, self.hidden, dtype) for one in (norm, next_norm, o_norm, down_norm)]
        self.handle = _extension().Between(
            *_matrix(o), *_matrix(gate_up), *_matrix(down), *_matrix(next), *norms, gate == "gelu_tanh"
        )
        self._outputs = self.handle.outputs

    def __call__(self, x: Tensor, mixed: Tensor) -> Tensor:
        """x [T, hidden], updated in place; mixed [T, inputs of o]; returns [T, outputs]. TypeError for other arrays."""
        rows, dtype = x.shape[0], self.dtype
        fits = x.shape == (rows, self.hidden) and mixed.shape == (rows, self.inputs)
        plain = x.dtype == mixed.dtype == dtype and x.is_contiguous() and mixed.is_contiguous() and x.is_cpu
        if not (fits and plain):
            raise TypeError(
                f"x and mixed are {x.dtype} {list(x.shape)} and {mixed.dtype} {list(mixed.shape)}; contiguous {dtype} "
                f"[T, {self.hidden}] and [T, {self.inputs}] on the CPU are needed"
            )
        out = x.new_empty((rows, self._outputs))
        self.handle.run(x.data_ptr(), mixed.data_ptr(), out.data_ptr(), dtype == torch.bfloat16, rows)
        return out


def _matrix(matrix: Matrix | None) -> tuple[object, int]:
    if matrix is None:
        return None, 0
    return matrix.weights.packed, 0 if matrix.bias is None else matrix.bias.data_ptr()


def norm_of(norm: Norm | None, size: int, dtype: torch.dtype) -> tuple[int, float, bool]:
    """Address of the weight (0: there is none), eps, and whether it is wide. ValueError unless the weight is [size]."""
    if norm is None:
        return 0, 0.0, False
    weight, expected = norm.weight, torch.float32 if norm.wide else dtype
    if weight.shape != (size,) or weight.dtype != expected or not weight.is_contiguous():
        raise ValueError(f"a norm is {weight.dtype} {list(weight.shape)}, expected {expected} [{size}]")
    return weight.data_ptr(), norm.eps, norm.wide
