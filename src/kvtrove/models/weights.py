"""Tensors of a checkpoint by name, memory-mapped.

A tensor is a view of the mapped file until something converts it, so a checkpoint that is already in the wanted dtype
costs no memory of its own on a CPU, and any other costs its converted size: the pages read meanwhile are clean file
pages that the kernel drops when it needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models.families.common import Locate
from kvtrove.models.gguf.checkpoint import GGUFCheckpoint
from kvtrove.models.gguf.header import gguf_file
from kvtrove.models.integers import IntegerCheckpoint
from kvtrove.models.integers_config import integers_of
from kvtrove.models.safetensors_files import SafetensorsCheckpoint

__all__ = ["Checkpoint", "SafetensorsCheckpoint", "open_checkpoint"]


class Checkpoint(Protocol):
    """What the loader asks of files of any format, under the names of Hugging Face."""

    listing: Path
    """The file or directory that says which tensors there are."""
    note: str
    """What somebody who loads it should know, with a place for the dtype of weights; empty where there is nothing."""
    locate: Locate | None
    """Where the decoder's parameters lie, where the format says so rather than the family."""

    def __contains__(self, name: str) -> bool: ...

    @property
    def names(self) -> frozenset[str]: ...

    def kind(self, name: str) -> Kind | None:
        """In which a product keeps the bits of a matrix that is quantised already; None where nothing is."""
        ...

    def groups(self, name: str, shape: tuple[int, ...], stack: tuple[int, int] | None = None) -> Groups | None:
        """A quantised matrix as it is stored; None where groups of 32 do not hold it exactly.

        stack: number and count of matrices that lie under one name.
        """
        ...

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor on the CPU: as it is stored where it is stored as floats, else in `dtype`.

        ModelError naming file and tensor when it is missing, of another shape, or of a type that is not read.
        """
        ...

    def one_of(self, name: str, index: int, count: int, shape: tuple[int, ...]) -> Tensor:
        """Number `index` of the `count` tensors of `shape` that lie stacked under one name.

        ModelError as for `read`.
        """
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """path: a directory with safetensors files, a GGUF file, or a directory that holds one.

    Raises ModelError naming the file for all that is wrong.
    """
    file = gguf_file(path)
    if file is not None:
        return GGUFCheckpoint(file)
    integers = integers_of(path)
    return SafetensorsCheckpoint(path) if integers is None else IntegerCheckpoint(path, integers)
