"""The safetensors files of one checkpoint directory, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models import mxfp4
from kvtrove.models.families.common import Locate
from kvtrove.models.shards import INDEX, SINGLE, find_shards
from kvtrove.models.spec import ModelError

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BYTES = {"U8": torch.uint8}
MXFP4 = "experts are stored in MXFP4 and computed in %s, four times as large; --weights gguf keeps their bits"


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
        self._last_groups: tuple[str, int, Groups] | None = None
        self._fits: dict[str, bool] = {}
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
            self._last = name, index, mxfp4.numbers(*self._mxfp4(name, index, count, outputs, inputs))[:, :inputs].T
        return self._last[2]

    def _mxfp4(self, name: str, index: int, count: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        """Blocks and exponents of one of a stack."""
        groups = -(-inputs // mxfp4.GROUP)
        blocks = self._stored(f"{name}_blocks", (count, outputs, groups, mxfp4.GROUP // 2), BYTES)
        scales = self._stored(f"{name}_scales", (count, outputs, groups), BYTES)
        return blocks[index], scales[index]

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
        """Of MXFP4, where float16 holds all scales; other exponents are read as numbers."""
        if f"{name}_blocks" not in self._files:
            return None
        if name not in self._fits:
            exponents = self.handle(self._files[f"{name}_scales"]).get_tensor(f"{name}_scales")
            least, most = (int(found) for found in exponents.aminmax())
            self._fits[name] = mxfp4.EXPONENTS[0] <= least <= most <= mxfp4.EXPONENTS[1]
        return "fp4" if self._fits[name] else None

    def groups(self, name: str, shape: tuple[int, ...], stack: tuple[int, int] | None = None) -> Groups | None:
        if stack is None or self.kind(name) is None:
            return None
        outputs, inputs = shape
        if inputs % mxfp4.GROUP:
            raise ModelError(f"{self.listing}: tensor {name!r} has {inputs} inputs, no multiple of {mxfp4.GROUP}")
        if self._last_groups is None or self._last_groups[:2] != (name, stack[0]):
            self._last_groups = name, stack[0], mxfp4.groups(*self._mxfp4(name, *stack, outputs, inputs))
        return self._last_groups[2]

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
