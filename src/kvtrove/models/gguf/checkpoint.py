"""Tensors of a GGUF file under the names of a Hugging Face checkpoint, memory-mapped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models.families.common import Locate
from kvtrove.models.gguf.architectures import find_architecture, own_metadata
from kvtrove.models.gguf.dequantize import GROUPS, READERS, dequantize
from kvtrove.models.gguf.header import TensorInfo, map_file, read_header
from kvtrove.models.gguf.names import Place, locate
from kvtrove.models.gguf.stored import kind_of
from kvtrove.models.spec import ModelError

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LATENT = ".self_attn.kv_b_proj.weight"
DECAY = ".A_log"
"""A parameter that the file holds the exponential of, negated."""
STATE = ".linear_attn."
"""In names of parameters of a mixer whose norm has nothing added."""
IN_PARTS = ".ssm_norm.weight"
"""Its parts are rows of a matrix in the file."""
READ_AT_ONCE = 1 << 18
"""Elements that are dequantised at a time."""


class GGUFCheckpoint:
    """The tensors of one GGUF model. Raises ModelError naming the file and tensor for all that is wrong.

    Stored floats are views of the mapped file, blocks are dequantised as they are read. What the format changes is
    changed back: rows and columns in another order, norm weights with 1 added, decays without their logarithm.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.listing, self.note = path, ""
        """The file that says which tensors there are."""
        self.architecture = find_architecture(header)
        self.locate: Locate | None = self.architecture.locate
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._maps = {file: map_file(file) for file in header.files}
        self._orders = self.architecture.orders(own_metadata(header))
        for tensor in header.tensors:
            self._check(tensor)

    def __contains__(self, name: str) -> bool:
        place = self._place(name)
        return place is not None and place.name in self._tensors

    @property
    def names(self) -> frozenset[str]:
        """As the file has them."""
        return frozenset(self._tensors)

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor on the CPU: as it is stored where it is stored as floats, else dequantised in `dtype`."""
        if name.endswith(LATENT) and name not in self:
            return self._latent(name, shape)
        return self._read(self._find(name, shape), name, shape, dtype)

    def _read(self, stored: _Stored, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        kind, data = stored.info.type, stored.data
        if kind.name in FLOATS:
            tensor = _floats(data, FLOATS[kind.name])
        else:
            tensor = torch.empty((len(data), stored.info.shape[0]), dtype=dtype)
            for rows, values in stored.dequantised():
                tensor[rows] = torch.from_numpy(values)
            if not tensor.isfinite().all():
                raise stored.not_finite()
        tensor = tensor.reshape(shape)
        if stored.rows is not None:
            tensor = tensor[torch.from_numpy(stored.rows)]
        if stored.columns is not None:
            tensor = tensor[:, torch.from_numpy(stored.columns)]
        if name.endswith(DECAY):
            return (-tensor).log()
        offset = self.architecture.norm_offset if name.endswith("norm.weight") and STATE not in name else 0.0
        return tensor - offset if offset else tensor

    def one_of(self, name: str, index: int, count: int, shape: tuple[int, ...]) -> Tensor:
        raise ModelError(f"{self.listing}: tensor {name!r} is not a stack of {count}; a GGUF file names each expert")

    def kind(self, name: str) -> Kind:
        """In which a product keeps the bits of this matrix. ModelError when there is none of that name."""
        if name.endswith(LATENT) and name not in self:
            return "int8_groups"  # read in float32: no product is made of it
        place = self._place(name)
        info = self._tensors.get(place.name) if place else None
        if info is None:
            raise ModelError(f"{self.listing}: tensor {name!r} is missing")
        kind: Kind = kind_of(info)  # type: ignore[assignment]
        return kind

    def groups(self, name: str, shape: tuple[int, ...], stack: tuple[int, int] | None = None) -> Groups | None:
        """The numbers, scales and minima that the file has; None of a type that does not lie in groups of 32."""
        stored = self._find(name, shape)
        columns = None if stored.columns is None else _whole_groups(stored.columns)
        if stored.info.type.name not in GROUPS or (stored.columns is not None and columns is None):
            return None
        blocks = stored.data.reshape(-1, stored.info.type.nbytes)
        bits, take_apart = GROUPS[stored.info.type.name]
        parts = take_apart(blocks)
        numbers, scales, minima = (torch.from_numpy(part).reshape(shape[0], -1) for part in parts)
        if not (scales.isfinite().all() and minima.isfinite().all()):
            raise stored.not_finite()
        if stored.rows is not None:
            order = torch.from_numpy(stored.rows)
            numbers, scales, minima = numbers[order], scales[order], minima[order]
        if columns is not None and stored.columns is not None:
            numbers = numbers[:, torch.from_numpy(stored.columns)]
            scales, minima = (part[:, torch.from_numpy(columns)] for part in (scales, minima))
        return Groups(numbers, scales, minima, bits)

    def _place(self, name: str) -> Place | None:
        place = locate(name, self.architecture.post_norms)
        return self.architecture.places.get(place.name, place) if place else None

    def _latent(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What latents of keys and values expand to, [heads * (nope + v_dim), rank], float32, of its two parts.

        Keys lie transposed, [heads, rank, nope], as queries meet them; values are [heads, v_dim, rank].
        """
        layer, rank = name.removesuffix(LATENT), shape[1]
        parts = []
        for part in ("attn_k_b", "attn_v_b"):
            place = Place(f"{layer.replace('model.layers.', 'blk.')}.{part}.weight")
            info = self._tensors.get(place.name)
            if info is None or len(info.shape) != 3 or rank != info.shape[part == "attn_k_b"]:
                raise ModelError(f"{self.listing}: tensor {place.name!r} is missing or not of rank {rank}")
            whole = tuple(reversed(info.shape))
            values = self._read(self._stored(place, info, whole), name, whole, torch.float32).float()
            parts.append(values.transpose(1, 2) if part == "attn_k_b" else values)
        if (
            parts[0].shape[0] != parts[1].shape[0]
            or parts[0].shape[0] * (parts[0].shape[1] + parts[1].shape[1]) != shape[0]
        ):
            raise ModelError(f"{self.listing}: {layer}: attn_k_b and attn_v_b do not have {shape[0]} rows together")
        return torch.cat(parts, dim=1).reshape(shape)

    def _find(self, name: str, shape: tuple[int, ...]) -> _Stored:
        place = self._place(name)
        info = self._tensors.get(place.name) if place else None
        if place is None or info is None:
            called = f"{place.name!r} ({name})" if place else repr(name)
            raise ModelError(f"{self.listing}: tensor {called} is missing, expected shape {list(shape)}")
        found = list(reversed(info.shape))
        wanted = [*found[:1], *shape] if place.expert is not None else list(shape)
        if info.name.endswith(IN_PARTS) and prod(found) == prod(wanted):
            found = wanted
        if _without_ones(found) != _without_ones(wanted) or (place.expert is not None and place.expert >= found[0]):
            raise ModelError(
                f"{info.file}: tensor {info.name!r} has shape {found}, but the metadata asks for {list(shape)}"
                + ("" if place.expert is None else f" for expert {place.expert}")
            )
        return self._stored(place, info, shape)

    def _stored(self, place: Place, info: TensorInfo, shape: tuple[int, ...]) -> _Stored:
        if info.type.name not in FLOATS and info.type.name not in READERS:
            raise ModelError(
                f"{info.file}: tensor {info.name!r} has the type {info.type.name}, which is not read; "
                f"supported: {', '.join((*FLOATS, *READERS))}"
            )
        rows, part = self._rows(info, place), info.name.partition(".")[2].partition(".")[2].partition(".")[0]
        if (order := self._orders.get(part)) is None:
            return _Stored(info, rows)
        size = shape[order.columns]
        try:
            moved = order.of_model(size)
        except ValueError:
            axis = "columns" if order.columns else "rows"
            raise ModelError(
                f"{info.file}: tensor {info.name!r} has {size} {axis}, which the heads in its metadata do not share"
            ) from None
        return _Stored(info, rows, columns=moved) if order.columns else _Stored(info, rows, moved)

    def _rows(self, info: TensorInfo, place: Place) -> NDArray[np.uint8]:
        """Bytes of its rows, uint8 [rows, bytes of a row], a view of the file."""
        rows = info.num_elements // info.shape[0]
        data = np.frombuffer(self._maps[info.file], np.uint8, info.nbytes, info.start).reshape(rows, -1)
        if place.expert is None:
            return data
        each = rows // info.shape[-1]
        return data[place.expert * each : (place.expert + 1) * each]

    def _check(self, tensor: TensorInfo) -> None:
        size, end = len(self._maps[tensor.file]), tensor.start + tensor.nbytes
        if end > size:
            raise ModelError(
                f"{tensor.file}: the file is cut off: tensor {tensor.name!r} ends at byte {end}, the file has {size}; "
                "download it again"
            )


@dataclass(frozen=True)
class _Stored:
    """data: uint8 [rows, bytes of a row]. rows, columns: in the order of the model; None is that of the file."""

    info: TensorInfo
    data: NDArray[np.uint8]
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None

    def not_finite(self) -> ModelError:
        name = self.info.name
        return ModelError(
            f"{self.info.file}: tensor {name!r} holds a value that is not finite; download the file again"
        )

    def dequantised(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Slices of rows in the order of the file, with their values, float32 [rows, elements]."""
        at_once = max(1, READ_AT_ONCE // self.info.shape[0])
        for start in range(0, len(self.data), at_once):
            rows = slice(start, start + at_once)
            blocks = self.data[rows].reshape(-1, self.info.type.nbytes)
            yield rows, dequantize(self.info.type.name, blocks).reshape(-1, self.info.shape[0])


def _whole_groups(columns: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The order of groups of 32 columns; None where some are torn apart."""
    groups = columns.reshape(-1, 32) if len(columns) % 32 == 0 else None
    if groups is None or (groups != groups[:, :1] + np.arange(32)).any() or (groups[:, 0] % 32).any():
        return None
    return groups[:, 0] // 32


def _without_ones(shape: list[int]) -> list[int]:
    """Some files leave out dimensions of size one."""
    return [size for size in shape if size != 1]


def _floats(data: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """uint8 [rows, bytes] as floats [rows, elements], a view."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to weights
        return torch.from_numpy(data).view(dtype)
