"""What a cached vector costs in each KV format, scales and summaries included.

    int4, head_dim 128      | 128 x 4 bits ............ | scale, zero | scale, zero | scale, zero | scale, zero |
                              64 bytes                    one pair of float16 per 32 elements: 16 bytes

The engine's own formats say their size themselves (`KVFormat.planes`); this table also holds the formats that other
engines use, so that a plan can show what they would buy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kvtrove.config import KV_DTYPES, ConfigError, nearest
from kvtrove.kv.spec import DTYPE_BYTES, KVFormat, Plane

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FormatFigures:
    """Size of a format. bits: per element. group: elements that share `scale_bytes`; 0 is the whole vector.

    summary_vectors: float16 vectors kept per block and head beside K (Quest, arXiv 2406.10774: minimum and maximum).
    """

    name: str
    bits: int
    scale_bytes: int = 0
    group: int = 0
    summary_vectors: int = 0

    def vector_bytes(self, dim: int) -> int:
        """Bytes of one vector of `dim` elements: one head's K or V of one token."""
        groups = -(-dim // self.group) if self.group else 1
        return -(-dim * self.bits // 8) + groups * self.scale_bytes if dim else 0

    @property
    def served(self) -> bool:
        """Whether the engine can be started with it."""
        return self.name in KV_DTYPES


FORMATS: Mapping[str, FormatFigures] = {
    figures.name: figures
    for figures in (
        FormatFigures("float32", 32),
        FormatFigures("bfloat16", 16),
        FormatFigures("float16", 16),
        FormatFigures("bfloat16+minmax", 16, summary_vectors=2),
        FormatFigures("int8", 8, scale_bytes=2),
        FormatFigures("fp8", 8),
        FormatFigures("q8_0", 8, scale_bytes=2, group=32),
        FormatFigures("int4", 4, scale_bytes=4, group=32),
        FormatFigures("q4_0", 4, scale_bytes=2, group=32),
    )
}
COMPARED = ("bfloat16", "int8", "fp8", "int4")
"""What the plan's table of formats shows beside the chosen one."""


def find_format(name: str) -> FormatFigures:
    """ConfigError for a name that is not in the table, with the nearest one."""
    if name not in FORMATS:
        raise ConfigError(f"kv_cache_dtype: {name!r} is not one of {', '.join(FORMATS)}{nearest(name, FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class SizedFormat:
    """A KVFormat that only knows its size: enough for `KVCacheSpec` to lay out rows, groups and blocks.

    v_dim: elements of a value where it differs from the key's `head_dim` (0: values are read out of the keys, as in
    MLA). extra_bytes: per token beside K and V, such as the index keys of sparse attention.
    """

    figures: FormatFigures
    v_dim: int | None = None
    extra_bytes: int = 0

    @property
    def name(self) -> str:
        return self.figures.name

    @property
    def lossless_for(self) -> tuple[str, ...]:
        return (self.name,) if self.figures.bits >= 16 and self.name in DTYPE_BYTES else ()

    @property
    def tail(self) -> KVFormat | None:
        return None

    @property
    def rope(self) -> Literal["post", "pre"]:
        return "post"

    def planes(self, kv_heads: int, head_dim: int, block_size: int) -> tuple[Plane, ...]:
        """One plane of bytes each for k, v, summaries and extras, as far as there are any."""
        v_dim = head_dim if self.v_dim is None else self.v_dim
        sizes = {
            "k": (kv_heads, block_size, self.figures.vector_bytes(head_dim)),
            "v": (kv_heads, block_size, self.figures.vector_bytes(v_dim)),
            "summary": (kv_heads, self.figures.summary_vectors, 2 * head_dim),
            "extra": (block_size, self.extra_bytes),
        }
        return tuple(plane for name, shape in sizes.items() if (plane := Plane(name, "uint8", shape)).nbytes)

    def encode(self, k: Tensor, v: Tensor, view: Mapping[str, Tensor], slots: Tensor) -> None:
        raise NotImplementedError(f"{self.name} is planned here, not written")

    def decode(self, view: Mapping[str, Tensor], block_ids: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} is planned here, not read")
