"""Calibration files: rotations of keys and values that `kvtrove calibrate` found for one model.

A safetensors file of float32 matrices "k.0", "v.0", "k.1", ... [dim, dim], one per side and layer. Its metadata holds
the SHA-256 of its data, whose beginning enters the fingerprint of caches that use it. Read without torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError

FORMAT = "kvtrove-calibration/1"


@dataclass(frozen=True, eq=False)
class Calibration:
    """digest: of the data, in hexadecimal. shapes: name -> shape."""

    path: str
    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    _data: bytes
    _places: Mapping[str, tuple[int, int]]

    def matrix(self, name: str) -> list[float]:
        """The elements of a matrix, row by row."""
        start, stop = self._places[name]
        return array("f", self._data[start:stop]).tolist()


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
        data = content[8 + length :]
        places = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        complete = about["format"] == FORMAT and max(stop for _, stop in places.values()) <= len(data)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cache: {path!r} is no complete calibration file; make it again") from error
    digest = hashlib.sha256(data).hexdigest()
    if not complete or digest != about.get("digest"):
        raise ConfigError(f"cache: the calibration {path!r} is not what was written: its digest differs; make it again")
    return Calibration(path, digest, {name: tuple(entry["shape"]) for name, entry in header.items()}, data, places)
