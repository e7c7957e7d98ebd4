"""Codecs of a store: a cold row may be smaller than a hot one. Lossless, and blind to what a row means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from kvtrove.config import ConfigError

LEVEL = 1
"""Higher levels of zstd gain a percent on rows and take three times as long."""


class Codec(Protocol):
    """Called by several threads at once."""

    def compress(self, content: bytes) -> bytes: ...

    def decompress(self, content: bytes, length: int) -> bytes | None:
        """The `length` bytes that were compressed; None when it is damaged."""
        ...


class Zstd:
    """zstd (RFC 8878) with its checksum, over the even bytes followed by the odd ones.

    The odd bytes of bf16 and fp16 are sign and exponent, which repeat; the even ones are noise that zstd then stores.
    """

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ConfigError(
                "tier ram: codec=zstd needs zstandard: pip install 'kvtrove[tiers]', or leave codec out"
            ) from error
        self._zstd: Any = zstandard
        self._own = threading.local()

    def compress(self, content: bytes) -> bytes:
        compressor = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = self._zstd.ZstdCompressor(level=LEVEL, write_checksum=True)
        return bytes(compressor.compress(_apart(content)))

    def decompress(self, content: bytes, length: int) -> bytes | None:
        decompressor = getattr(self._own, "decompressor", None)
        if decompressor is None:
            decompressor = self._own.decompressor = self._zstd.ZstdDecompressor()
        try:
            apart = decompressor.decompress(content, max_output_size=length)
        except self._zstd.ZstdError:
            return None
        return _together(apart) if len(apart) == length else None


CODECS: Mapping[str, Callable[[], Codec]] = {"zstd": Zstd}


def _apart(content: bytes) -> bytes:
    """The bytes at even places, then those at odd ones."""
    mixed = np.frombuffer(content, np.uint8)
    apart = np.empty_like(mixed)
    half = -(-len(content) // 2)
    apart[:half], apart[half:] = mixed[0::2], mixed[1::2]
    return apart.tobytes()


def _together(content: bytes) -> bytes:
    apart = np.frombuffer(content, np.uint8)
    mixed = np.empty_like(apart)
    half = -(-len(content) // 2)
    mixed[0::2], mixed[1::2] = apart[:half], apart[half:]
    return mixed.tobytes()
