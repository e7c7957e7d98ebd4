"""How K/V are encoded: one file per format, each a frozen dataclass that satisfies `kvtrove.kv.spec.KVFormat`."""

from __future__ import annotations

from kvtrove.kv.formats.dense import DenseFormat
from kvtrove.kv.formats.int8 import Int8Format
from kvtrove.kv.spec import KVFormat


def engine_format(name: str) -> KVFormat:
    """The format that the engine stores when asked for `name` (`kvtrove.config.KV_DTYPES` without "auto")."""
    return Int8Format() if name == "int8" else DenseFormat(name)
