"""Checkpoints of integer weights: GPTQ (arXiv 2210.17323), AWQ (2306.00978), and compressed-tensors W4A16 and W8A16.

    gptq    qweight [inputs / n, outputs], qzeros [groups, outputs / n], scales [groups, outputs], g_idx [inputs]
    awq     qweight [inputs, outputs / 8], qzeros [groups, outputs / 8], in the order 0 2 4 6 1 3 5 7
    packed  weight_packed [outputs, inputs / n], weight_scale [outputs, groups], weight_zero_point [outputs / n, groups]
    bytes   weight int8 [outputs, inputs], weight_scale [outputs, groups]      n: numbers in 32 bits, the first lowest

Numbers in groups of a multiple of 32 inputs are kept as they are. All others stand for floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvtrove.kernels.linear import GROUP, Groups, Kind
from kvtrove.models.integers_config import Integers
from kvtrove.models.safetensors_files import FLOATS, SafetensorsCheckpoint
from kvtrove.models.spec import ModelError

_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where the outputs 0 to 7 lie in a word of AWQ."""
_SCALES = {"gptq": "scales", "awq": "scales", "packed": "weight_scale", "bytes": "weight_scale"}


@dataclass(frozen=True)
class _Matrix:
    """numbers: uint8 [outputs, inputs]. scales, zeros: float32 [outputs, groups].

    group_of: int64 [inputs], the group of each; None where they follow each other.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor | None

    @property
    def group(self) -> int:
        return -(-self.numbers.shape[1] // self.scales.shape[1])

    @property
    def fits(self) -> bool:
        """Whether groups of 32 inputs hold it."""
        return self.group_of is None and (self.scales.shape[1] == 1 or self.group % GROUP == 0)

    def lines(self) -> tuple[Tensor, Tensor]:
        """Scales and minima of 32 inputs each. Both are exact: a product of 16 bits at most."""
        count, repeats = -(-self.numbers.shape[1] // GROUP), max(1, -(-self.group // GROUP))
        scales, zeros = (part.repeat_interleave(repeats, 1)[:, :count] for part in (self.scales, self.zeros))
        return scales.contiguous(), (-scales * zeros).contiguous()

    def values(self) -> Tensor:
        """float32 [outputs, inputs]."""
        inputs = self.numbers.shape[1]
        index = torch.arange(inputs) // self.group if self.group_of is None else self.group_of
        return self.scales[:, index] * (self.numbers.float() - self.zeros[:, index])


class IntegerCheckpoint(SafetensorsCheckpoint):
    """A safetensors directory in which some matrices are integers."""

    def __init__(self, directory: Path, integers: Integers) -> None:
        super().__init__(directory)
        self._integers = integers
        self._kinds: dict[str, Kind] = {}

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) or self._is_packed(name)

    def kind(self, name: str) -> Kind | None:
        if not self._is_packed(name):
            return None
        if name not in self._kinds:
            self._kinds[name] = self._kind(name)
        return self._kinds[name]

    def groups(self, name: str, shape: tuple[int, ...], stack: tuple[int, int] | None = None) -> Groups | None:
        matrix = self._matrix(name, shape)
        return self._groups(matrix) if matrix.fits else None

    def _groups(self, matrix: _Matrix) -> Groups:
        return Groups(matrix.numbers, *matrix.lines(), self._integers.bits)

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor as it is stored as floats, without copying it, or the floats of integers in `dtype`."""
        if self._is_packed(name):
            return self._matrix(name, shape).values().to(dtype)
        return super().read(name, shape, dtype)

    def _is_packed(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        return part == "weight" and f"{module}.{_SCALES[self._integers.layout]}" in self._files

    def _kind(self, name: str) -> Kind:
        """Groups of 32 where they hold it; all others are rounded once more, to 8 bits with a scale for 32 inputs."""
        matrix = self._matrix(name, None)
        return self._groups(matrix).kind if matrix.fits else "int8_groups"

    def _matrix(self, name: str, shape: tuple[int, ...] | None) -> _Matrix:
        """ModelError when parts of it are missing, or it is not of the `shape` that is expected."""
        how = {"gptq": self._gptq, "awq": self._awq, "packed": self._packed, "bytes": self._bytes}
        matrix = how[self._integers.layout](name.rpartition(".")[0])
        outputs, inputs = matrix.numbers.shape
        if shape is not None and (outputs, inputs) != tuple(shape):
            raise self._wrong(name, f"has shape {[outputs, inputs]}, but config.json asks for {list(shape)}")
        groups = matrix.scales.shape[1]
        wanted = 1 if not self._integers.group else -(-inputs // self._integers.group)
        if matrix.scales.shape != matrix.zeros.shape or len(matrix.scales) != outputs or groups != wanted:
            found = f"scales {list(matrix.scales.shape)} and zeros {list(matrix.zeros.shape)}"
            raise self._wrong(name, f"has {found}, expected {wanted} groups")
        if not bool(matrix.scales.isfinite().all()):
            raise self._wrong(name, "has scales that are not finite")
        if matrix.group_of is not None and not 0 <= int(matrix.group_of.min()) <= int(matrix.group_of.max()) < groups:
            raise self._wrong(name, f"has inputs of groups beyond its {groups}")
        return matrix

    def _gptq(self, module: str) -> _Matrix:
        words, zeros = self._part(module, "qweight", torch.int32), self._part(module, "qzeros", torch.int32)
        numbers = self._unpacked(words).movedim(2, 1).flatten(0, 1).T
        unpacked = self._unpacked(zeros).flatten(1).T.float() + self._integers.zero_offset
        scales = self._part(module, "scales").float().T
        index = self._optional(module, "g_idx")
        return _Matrix(numbers.contiguous(), scales, unpacked, self._scattered(index, numbers.shape[1]))

    def _awq(self, module: str) -> _Matrix:
        words, zeros = self._part(module, "qweight", torch.int32), self._part(module, "qzeros", torch.int32)
        numbers, unpacked = (self._unpacked(part)[..., _AWQ_PLACES].flatten(1).T for part in (words, zeros))
        return _Matrix(numbers.contiguous(), self._part(module, "scales").float().T, unpacked.float(), None)

    def _packed(self, module: str) -> _Matrix:
        outputs, inputs = (int(size) for size in self._part(module, "weight_shape", torch.int64))
        numbers = self._unpacked(self._part(module, "weight_packed", torch.int32)).flatten(1)
        scales = self._part(module, "weight_scale").float()
        zeros = self._optional(module, "weight_zero_point")
        if zeros is None:
            unpacked = torch.full_like(scales, 1 << (self._integers.bits - 1))
        elif zeros.dtype == torch.int32:
            unpacked = self._unpacked(zeros).movedim(2, 1).flatten(0, 1)[:outputs].float()
        else:
            unpacked = zeros.float() + (1 << (self._integers.bits - 1))
        index = self._optional(module, "weight_g_idx")
        return _Matrix(numbers[:outputs, :inputs].contiguous(), scales, unpacked, self._scattered(index, inputs))

    def _bytes(self, module: str) -> _Matrix:
        numbers, scales = self._part(module, "weight", torch.int8), self._part(module, "weight_scale").float()
        zeros = self._optional(module, "weight_zero_point")
        unpacked = torch.full_like(scales, 128.0) if zeros is None else zeros.float() + 128
        return _Matrix((numbers.short() + 128).to(torch.uint8), scales, unpacked, None)

    def _unpacked(self, words: Tensor) -> Tensor:
        """int32 [...] -> uint8 [..., numbers in a word]."""
        bits = self._integers.bits
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8)

    def _scattered(self, index: Tensor | None, inputs: int) -> Tensor | None:
        """The group of each input; None where groups follow each other."""
        if index is None:
            return None
        if len(index) != inputs:
            raise ModelError(f"{self.listing}: g_idx has {len(index)} entries for {inputs} inputs")
        group = self._integers.group or inputs
        in_order = torch.equal(index.long(), torch.arange(inputs) // group)
        return None if in_order else index.long()

    def _part(self, module: str, part: str, dtype: torch.dtype | None = None) -> Tensor:
        found = self._optional(module, part)
        if found is None:
            raise ModelError(f"{self.listing}: tensor {module + '.' + part!r} is missing")
        wanted = FLOATS.values() if dtype is None else (dtype,)
        ndim = 1 if part == "weight_shape" else 2
        if found.dtype not in wanted or found.ndim != ndim:
            expected = " or ".join(map(str, wanted))
            raise self._wrong(f"{module}.{part}", f"is {found.dtype} {list(found.shape)}, expected {expected}")
        return found

    def _optional(self, module: str, part: str) -> Tensor | None:
        name = f"{module}.{part}"
        if name not in self._files:
            return None
        tensor: Tensor = self.handle(self._files[name]).get_tensor(name)
        return tensor

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.listing}: tensor {name!r} {what}")
