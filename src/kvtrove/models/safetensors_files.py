"""The safetensors files of one checkpoint directory, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models.families.common import Locate
from kvtrove.models.mxfp4 import GROUP as MXFP4_GROUP
from kvtrove.models.mxfp4 import numbers as mxfp4
from kvtrove.models.shards import INDEX, SINGLE, find_shards
from kvtrove.models.spec import ModelError

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BYTES = {"U8": torch.uint8}
MXFP4 = "experts are stored in MXFP4 and computed in %s, four times as large; --weights int4 rounds them to 5 bits each"


class SafetensorsCheckpoint:
    """The safetensors files of one directory. Raises ModelError naming the file (and tensor) for all that is wrong."""

    locate: Locate | None = None
    """The family says where parameters lie."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, Any] = {}
        shards = find_shards(directory)
        if shards is None:
            raise self._no_weights()
        self.files = shards.files
        self.listing = shards.listing
        """The file or directory that says which tensors there are."""
        self._files = dict(shards.weight_map or {})
        if shards.weight_map is None:
            for file in shards.files:
                self._files |= dict.fromkeys(self.handle(file).keys(), file)
        self._last: tuple[str, int, Tensor] | None = None  # of MXFP4: gate and up are read out of the same numbers
        self.note = MXFP4 if any(name.endswith("_proj_blocks") for name in self._files) else ""

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor as it is stored, on the CPU, without copying it."""
        return self._stored(name, shape, FLOATS)

    def one_of(self, name: str, index: int, count: int, shape: tuple[int, ...]) -> Tensor:
        """Of MXFP4, whose blocks lie along the first dimension of what they stand for: its numbers in bfloat16."""
        if name in self._files or f"{name}_blocks" not in self._files:
            return self._stored(name, (count, *shape), FLOATS)[index]
        if self._last is None or self._last[:2] != (name, index):
            inputs, outputs = shape
            groups = -(-inputs // MXFP4_GROUP)
            blocks = self._stored(f"{name}_blocks", (count, outputs, groups, MXFP4_GROUP // 2), BYTES)
            scales = self._stored(f"{name}_scales", (count, outputs, groups), BYTES)
            self._last = name, index, mxfp4(blocks[index], scales[index])[:, :inputs].T
        return self._last[2]

    def _stored(self, name: str, shape: tuple[int, ...], dtypes: Mapping[str, torch.dtype]) -> Tensor:
        if name not in self._files:
            raise ModelError(f"{self.listing}: tensor {name!r} is missing, expected shape {list(shape)}")
        path = self._files[name]
        handle = self.handle(path)
        try:
            entry = handle.get_slice(name)
        except SafetensorError:
            raise ModelError(f"{path}: tensor {name!r} is missing, though {INDEX} places it there") from None
        found, stored = list(entry.get_shape()), entry.get_dtype()
        if found != list(shape):
            raise ModelError(f"{path}: tensor {name!r} has shape {found}, but config.json asks for {list(shape)}")
        if stored not in dtypes:
            raise ModelError(f"{path}: tensor {name!r} is stored as {stored}; supported: {', '.join(dtypes)}")
        tensor: Tensor = handle.get_tensor(name)
        return tensor

    def kind(self, name: str) -> Kind | None:
        return None

    def groups(self, name: str, shape: tuple[int, ...]) -> Groups | None:
        return None

    def _no_weights(self) -> ModelError:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.directory.glob(pattern))
        if pickles:
            return ModelError(
                f"{self.directory}: the weights are pickled ({pickles[0]}). Only safetensors are read, because loading "
                f"a pickle can run any code in it; convert them with safetensors.torch.save_file to {SINGLE}"
            )
        return ModelError(f"{self.directory}: no weights found; expected {SINGLE} or {INDEX} with its shards")

    def handle(self, path: Path) -> Any:
        """One of the files, open. ModelError when it is cut short or its header is wrong."""
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a complete safetensors file ({error}); download it again") from error
        return self._open[path]
