"""Linear layers whose weights stay bf16 or int8 in memory: y = x W^T + bias.

bf16 becomes float32 in registers. Rows of x meet int8 weights as 16-bit integers, with a scale per 128 inputs: off
by 2^-16 of the largest of them at most, and added up exactly (on AMX 15 bits, per 256 inputs: 2^-15). Sums are taken
in the order of the inputs, whatever the batch, the blocking or the number of threads, so a row gives the same bits in
every batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kvtrove.kernels import _extension

Kind = Literal["bf16", "int8"]
_FLOATS = (torch.float32, torch.bfloat16)
FILLED_AT_ONCE = 1 << 22
"""Elements of a source in another dtype that are converted at a time."""


class PackedWeights:
    """W [outputs, inputs] in memory of its own (huge pages), repacked so that a product reads one run of bytes.

    kind: "bf16", or "int8": symmetric, one float32 scale per output, |error| <= scale / 2. isa: as for `kernels.isa`.
    All weights are zero until they are filled.
    """

    def __init__(self, outputs: int, inputs: int, kind: Kind = "bf16", isa: str = "auto") -> None:
        if outputs < 1 or inputs < 1:
            raise ValueError(f"weights of shape [{outputs}, {inputs}]: both must be at least 1")
        self.outputs, self.inputs, self.kind = outputs, inputs, kind
        self.packed = _extension().PackedWeights(outputs, inputs, kind, isa)

    @property
    def nbytes(self) -> int:
        """Weights, scales, and what fills up the last panel."""
        return int(self.packed.nbytes)

    def fill(self, first_output: int, source: Tensor) -> None:
        """Overwrites outputs first_output .. first_output + n with source [n, inputs], any floating-point dtype.

        ValueError when they do not exist, when the width is another, or (int8) when a value is not finite.
        """
        if source.ndim != 2:
            raise ValueError(f"source has {source.ndim} dimensions, expected [outputs, {self.inputs}]")
        if source.dtype in _FLOATS:
            self.packed.fill(first_output, source.contiguous())
            return
        rows = max(1, FILLED_AT_ONCE // self.inputs)
        for start in range(0, len(source), rows):
            self.packed.fill(first_output + start, source[start : start + rows].float())

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [rows, inputs] float32 or bfloat16 on the CPU -> [rows, outputs] in its dtype; bias float32 [outputs].

        Sums are float32 and rounded once. TypeError or ValueError for other arrays.
        """
        x = x.contiguous()
        y = x.new_empty((_rows(x, self.inputs), self.outputs))
        address = 0
        if bias is not None:
            if bias.shape != (self.outputs,) or bias.dtype != torch.float32 or not bias.is_contiguous():
                raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}, expected float32 [{self.outputs}]")
            address = bias.data_ptr()
        self.packed.multiply(x.data_ptr(), y.data_ptr(), _is_bf16(x), len(x), address)
        return y

    def gather(self, ids: Tensor, out: Tensor) -> Tensor:
        """Rows `ids` (int64 [n]) of W into out [n, inputs], float32 or bfloat16: an embedding is looked up this way.

        IndexError for a row that does not exist.
        """
        ids = ids.contiguous()
        if ids.dtype != torch.int64 or ids.ndim != 1 or not ids.is_cpu:
            raise TypeError(f"ids are {ids.dtype} {list(ids.shape)} on {ids.device}, expected int64 [n] on the CPU")
        if _rows(out, self.inputs) != len(ids) or not out.is_contiguous():
            raise ValueError(f"out is {list(out.shape)}, expected [{len(ids)}, {self.inputs}] without gaps")
        self.packed.gather(ids.data_ptr(), len(ids), out.data_ptr(), _is_bf16(out))
        return out


def _rows(x: Tensor, width: int) -> int:
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"an array is {list(x.shape)}, expected [rows, {width}]")
    if not x.is_cpu:
        raise TypeError(f"an array is on {x.device}, the kernels read the CPU's memory")
    return x.shape[0]


def _is_bf16(x: Tensor) -> bool:
    if x.dtype not in _FLOATS:
        raise TypeError(f"an array is {x.dtype}, expected float32 or bfloat16")
    return x.dtype == torch.bfloat16
