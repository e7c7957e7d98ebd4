"""fp8: e4m3 with one scale per token and head. As many bytes as int8; finer near zero, coarser at the maximum.

    x [dim]  ->  s = float16(max|x| / 448, rounded up),  e4m3(x / s)

The error of an element is at most 1/16 of itself, or s / 1024 where that is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.int8 import scales_of
from kvtrove.kv.formats.layout import data_plane, read, read_scales, write, write_scales
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import Planes

if TYPE_CHECKING:
    from torch import Tensor

MOST = 448.0  # the largest e4m3


@dataclass(frozen=True)
class Fp8(TokenCodec):
    """Plane "scale", float16 [heads, block_size], lies beside the elements, whose bytes are tiled as those of int8."""

    @property
    def id(self) -> str:
        return self.id_of("fp8")

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (
            data_plane(self.side, self.layout, "float8_e4m3fn", heads, dim, block_size),
            Plane("scale", "float16", (heads, block_size)),
        )

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        """Computed in float32."""
        wide = x.float()
        scales = scales_of(wide, MOST)
        small = (wide / scales[..., None].float()).clamp(-MOST, MOST).to(view["data"].dtype)
        write(self.side, _bytes(small), _bytes(view["data"]), slots)
        write_scales(scales, view["scale"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32."""
        elements = read(self.side, _bytes(view["data"]), rows).view(view["data"].dtype)
        return elements.float() * read_scales(view["scale"], rows).float()


def _bytes(x: Tensor) -> Tensor:
    """x as uint8, which every device can index."""
    return x.view(x.new_empty(0).byte().dtype)
