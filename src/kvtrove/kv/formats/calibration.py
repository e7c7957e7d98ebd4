"""Calibration files: rotations and bases of keys and values that `kvtrove calibrate` found for one model.

A safetensors file of float32, with these for each side ("k", "v") and layer:

    k.0           [dim, dim], or [heads, dim, dim] for heads with rotations of their own      oscar
    k.0.basis     [groups, n, n] with n = heads * dim / groups, columns by what they explain  lowrank
    k.0.weights   [heads * dim], what each element is multiplied by before                    lowrank
    k.0.channels  [heads, dim], how much each element of rotated keys matters: mean |q * k|     doublesparsity
    q.0.mean      [num_heads, dim], queries before their rotation, on average                 triattention
    q.0.length    [num_heads, dim / 2], how much longer their rotated pairs are on average    triattention
    gate.0        [heads, k_dim + v_dim + 3], what a key and its value say of a token         surrogate

Its metadata holds the SHA-256 of its data, whose beginning enters the fingerprint of caches that use it. Read without
torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtrove.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from kvtrove.kv.spec import KVCacheSpec

FORMAT = "kvtrove-calibration/1"


@dataclass(frozen=True, eq=False)
class Calibration:
    """digest: of the data, in hexadecimal. shapes: name -> shape."""

    path: str
    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    _data: bytearray
    _places: Mapping[str, tuple[int, int]]
    _tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """float32, on the device of `like`; made once. On a CPU it is the memory of the file itself."""
        torch: Any = sys.modules[type(like).__module__]  # loaded by whoever has a tensor, and by nobody else

        place = name, str(like.device)
        if place not in self._tensors:
            start, stop = self._places[name]
            flat = torch.frombuffer(self._data, dtype=torch.float32, count=(stop - start) // 4, offset=start)
            self._tensors[place] = flat.reshape(self.shapes[name]).to(like.device)
        return self._tensors[place]

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        return len(self._data)


def calibration_bytes(cache: KVCacheSpec) -> int:
    """Of the calibrations that codecs, selectors and the compactor of a cache read, each once."""
    readers = (one for layer in cache.layers for one in (*layer.format.sides, layer.format.select))
    return sum({one.digest: one.nbytes for one in calibrations((*readers, cache.compactor))}.values())


def calibrations(readers: Iterable[object]) -> list[Calibration]:
    """Those of codecs, selectors and compactors that read one."""
    return [one for reader in readers if (one := getattr(reader, "calibration", None)) is not None]


@functools.cache
def read_calibration(path: str) -> Calibration:
    """ConfigError for a file that is missing, incomplete, changed, or something else."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cache: cannot read the calibration {path!r}: {error.strerror}; make it with "
            "`kvtrove calibrate MODEL --text FILE --out FILE`"
        ) from error
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        about = header.pop("__metadata__")
        data = bytearray(memoryview(content)[8 + length :])
        places = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        complete = about["format"] == FORMAT and max(stop for _, stop in places.values()) <= len(data)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cache: {path!r} is no complete calibration file; make it again") from error
    digest = hashlib.sha256(data).hexdigest()
    if not complete or digest != about.get("digest"):
        raise ConfigError(f"cache: the calibration {path!r} is not what was written: its digest differs; make it again")
    return Calibration(path, digest, {name: tuple(entry["shape"]) for name, entry in header.items()}, data, places)
