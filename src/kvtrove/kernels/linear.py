"""Linear layers whose weights stay bf16, int8, or in groups of 4 or 8 bits in memory: y = x W^T + bias.

bf16 becomes float32 in registers. Rows of x meet int8 weights as 16-bit integers, with a scale per 128 inputs: off
by 2^-16 of the largest of them at most, and added up exactly (on AMX 15 bits, per 256 inputs: 2^-15; beside
groups everywhere, with the same bits at every level). Sums are taken in the order of the inputs, whatever the batch,
the blocking or the number of threads, so a row gives the same bits in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvtrove.kernels import _extension

Kind = Literal["bf16", "int8", "int4", "int4_f32", "int8_groups", "int8_groups_f32", "fp4", "int4_symmetric"]
GROUP = 32
"""Inputs of an output that share a scale and a minimum in weights that lie in groups."""
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""What the codes of MXFP4 stand for, doubled."""
_FLOATS = (torch.float32, torch.bfloat16)
FILLED_AT_ONCE = 1 << 22
"""Elements of a source in another dtype that are converted at a time."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Weights [outputs, inputs] in 4 or 8 bits: value = scale * number + minimum.

    numbers: uint8 [outputs, inputs], 0..15 or 0..255. scales, minima: float32 [outputs, ceil(inputs / 32)], of 32
    inputs each. Holds exactly what GGUF calls Q4_0 (minimum = -8 d), Q4_1 and Q4_K (scale = d * 6 bits, minimum =
    -dmin * 6 bits), and in 8 bits Q8_0 (minimum = -128 d), Q5_0 and Q5_1, Q5_K, IQ4_NL and IQ4_XS.

    codes: value = scale * E2M1[number], numbers of 0..15, scales that float16 holds, minima of zero.
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor
    bits: int = 4
    codes: bool = False

    def __post_init__(self) -> None:
        outputs, inputs = self.numbers.shape
        expected = (outputs, -(-inputs // GROUP))
        if self.numbers.dtype != torch.uint8:
            raise TypeError(f"numbers are {self.numbers.dtype}, expected uint8")
        for name, lines in (("scales", self.scales), ("minima", self.minima)):
            if lines.shape != expected or not lines.is_floating_point():
                raise ValueError(f"{name} are {lines.dtype} {list(lines.shape)}, expected floats {list(expected)}")

    @property
    def kind(self) -> Kind:
        """The narrowest that keeps every scale and minimum as it is: 4.5, 5 or 6 bits a weight; or 8.5 or 10."""
        if self.codes:
            return "fp4"
        lines = (self.scales,) if self.symmetric else (self.scales, self.minima)
        narrow = all(bool((line.half().float() == line.float()).all()) for line in lines)
        if self.bits == 8:
            return "int8_groups" if self.symmetric and narrow else "int8_groups_f32"
        return "int4_f32" if not narrow else "int4_symmetric" if self.symmetric else "int4"

    @property
    def symmetric(self) -> bool:
        """Numbers around 8, or those of 8 bits around 128."""
        return not self.codes and torch.equal(self.minima, -self._zero * self.scales)

    @property
    def _zero(self) -> int:
        return 1 << (self.bits - 1)

    def values(self) -> Tensor:
        """What they stand for, in float32 [outputs, inputs]: the product and the sum are rounded once each."""
        scales, minima = (
            lines.float().repeat_interleave(GROUP, 1)[:, : self.numbers.shape[1]]
            for lines in (self.scales, self.minima)
        )
        numbers = torch.tensor(E2M1, dtype=torch.float32)[self.numbers.int()] if self.codes else self.numbers
        return scales * (self.numbers.float() - self._zero) if self.symmetric else scales * numbers + minima


class PackedWeights:
    """W [outputs, inputs] in memory of its own (huge pages), repacked so that a product reads one run of bytes.

    kind: "bf16"; "int8": symmetric, one float32 scale per output, |error| <= scale / 2; "int4": integers of 0..15 with
    a float16 scale and minimum for 32 inputs (5 bits a weight); "int4_f32": with float32 ones (6 bits);
    "int4_symmetric": with a float16 scale alone (4.5 bits); "int8_groups": the same (8.5 bits); "int8_groups_f32":
    integers of 0..255 with a float32 scale and minimum (10 bits); "fp4": codes (`Groups.codes`) with a float16 scale
    (4.5 bits), filled by `fill_groups` alone.
    isa: as for `kernels.isa`. All weights are zero until they are filled.
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

        ValueError when they do not exist, when the width is another, or (all but bf16) when a value is not finite.
        """
        if source.ndim != 2:
            raise ValueError(f"source has {source.ndim} dimensions, expected [outputs, {self.inputs}]")
        if source.dtype in _FLOATS:
            self.packed.fill(first_output, source.contiguous())
            return
        rows = max(1, FILLED_AT_ONCE // self.inputs)
        for start in range(0, len(source), rows):
            self.packed.fill(first_output + start, source[start : start + rows].float())

    def fill_groups(self, first_output: int, source: Groups) -> None:
        """The same for weights in groups that have this form already: they are kept as they are.

        ValueError where that cannot be: a number beyond 15, a scale that is no float16 in weights of kind "int4".
        """
        if source.numbers.shape[1] != self.inputs:
            raise ValueError(f"groups have {source.numbers.shape[1]} inputs, expected {self.inputs}")
        lines = [lines.float().contiguous() for lines in (source.scales, source.minima)]
        self.packed.fill_groups(first_output, source.numbers.contiguous(), *lines)

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

    def multiply_heads(self, x: Tensor, heads: int, each: int) -> Tensor:
        """x [heads, rows, inputs] -> [heads, rows, each], where W is [heads, outputs / heads, inputs] in bf16.

        Heads are whole panels (`packed.width` outputs), of which the first `each` outputs count. TypeError or
        ValueError for other arrays.
        """
        x = x.contiguous()
        rows = _rows(x.flatten(0, 1), self.inputs) // heads
        y = x.new_empty((heads, rows, each))
        self.packed.multiply_heads(x.data_ptr(), y.data_ptr(), _is_bf16(x), rows, heads, each)
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
